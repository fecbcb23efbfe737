from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import read_queries, source_folder
from tasks.queries import QueriesSettings, copy_query_set

if TYPE_CHECKING:
    from tests.conftest import MakeTree, Recorded


def _write(recorded: Recorded, target: Path) -> pl.DataFrame:
    target.mkdir()
    return copy_query_set(recorded.folder, target, max_pixels=1_000_000)


def _set_sha256(recorded: Recorded, image: str) -> None:
    """Make the table agree with a picture that a test spoiled, so that only the picture itself is at fault."""
    digest = hashlib.sha256((recorded.folder / image).read_bytes()).hexdigest()
    changed = pl.when(pl.col("image") == image).then(pl.lit(digest)).otherwise("image_sha256").alias("image_sha256")
    recorded.write_queries(recorded.queries.with_columns(changed))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one line of data: a few bytes that would unpack to all those pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_query_set_is_copied_with_paths_relative_to_its_images(recorded: Recorded, tmp_path: Path) -> None:
    queries = _write(recorded, tmp_path / "queries")
    assert queries.height == 90
    for image, sha256 in queries.select("image", "image_sha256").iter_rows():
        assert hashlib.sha256((tmp_path / "queries/images" / image).read_bytes()).hexdigest() == sha256
    assert queries["query_id"].head(1).to_list() == ["colours/000"]
    assert queries.filter(pl.col("query_id") == "colours/000")["image"].item() == "colours/000.png"


def test_missing_optional_columns_are_filled(recorded: Recorded) -> None:
    recorded.write_queries(recorded.queries.drop("image_group", "template", "licence", "source_image_sha256"))
    queries = read_queries(recorded.folder)
    assert queries["image_group"].to_list() == queries["image_sha256"].to_list()
    assert queries["template"].to_list() == queries["image_group"].to_list()
    assert queries["licence"].null_count() == 90


def test_empty_group_becomes_the_picture_hash_and_empty_template_the_group(recorded: Recorded) -> None:
    changed = recorded.queries.with_columns(
        image_group=pl.when(pl.col("query_id") == "colours/000").then(pl.lit("")).otherwise("image_group"),
        template=pl.when(pl.col("query_id") == "colours/001").then(None).otherwise("template"),
    )
    recorded.write_queries(changed)
    rows = {row["query_id"]: row for row in read_queries(recorded.folder).iter_rows(named=True)}
    assert rows["colours/000"]["image_group"] == rows["colours/000"]["image_sha256"]
    assert rows["colours/001"]["template"] == rows["colours/001"]["image_group"] == "colours-0"


def test_pictures_that_cannot_be_used_are_all_named(recorded: Recorded, tmp_path: Path) -> None:
    images = recorded.folder / "images"
    (images / "colours/000.png").unlink()
    (images / "colours/001.png").write_bytes(b"")
    (images / "colours/002.png").write_bytes((images / "colours/002.png").read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        _write(recorded, tmp_path / "queries")
    text = str(caught.value)
    assert "pictures that cannot be used, 3 in all" in text
    assert "query colours/000" in text
    assert "missing" in text
    assert "query colours/001" in text
    assert "0 bytes" in text
    assert "query colours/002" in text
    assert "the picture was changed or cut" in text


def test_twenty_pictures_are_named_at_most_and_all_are_counted(recorded: Recorded, tmp_path: Path) -> None:
    for path in (recorded.folder / "images/counts").iterdir():
        path.unlink()
    with pytest.raises(DataError) as caught:
        _write(recorded, tmp_path / "queries")
    assert "30 in all" in str(caught.value)
    assert str(caught.value).count("query counts/") == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"\x89PNG\r\n\x1a\n", "no picture that can be read"),
        (b"<html>not found</html>", "no picture that can be read"),
        (png_header(20_000, 10_000), "20000 x 10000 px"),
    ],
    ids=["0 bytes", "truncated header", "no picture", "200 megapixels"],
)
def test_unusable_picture_is_refused_even_when_its_hash_agrees(
    recorded: Recorded, tmp_path: Path, content: bytes, words: str
) -> None:
    (recorded.folder / "images/colours/003.png").write_bytes(content)
    _set_sha256(recorded, "images/colours/003.png")
    with pytest.raises(DataError, match=words):
        _write(recorded, tmp_path / "queries")


def test_one_picture_file_may_serve_several_queries(recorded: Recorded, tmp_path: Path) -> None:
    first = recorded.queries.filter(pl.col("query_id") == "colours/000")
    same = pl.col("query_id") == "colours/001"
    columns = ("image", "image_sha256")
    changed = [pl.when(same).then(pl.lit(first[c].item())).otherwise(pl.col(c)).alias(c) for c in columns]
    recorded.write_queries(recorded.queries.with_columns(changed))
    assert _write(recorded, tmp_path / "queries")["image"].n_unique() == 89


@pytest.mark.parametrize(
    "image", ["../secret.png", "images/../../secret.png", "/etc/passwd", "pictures/a.png", "images"]
)
def test_picture_path_that_leaves_the_images_folder_is_refused(recorded: Recorded, image: str) -> None:
    changed = pl.when(pl.col("query_id") == "colours/004").then(pl.lit(image)).otherwise("image").alias("image")
    recorded.write_queries(recorded.queries.with_columns(changed))
    with pytest.raises(DataError, match=r"'image' must be a path that begins with 'images/'.*colours/004"):
        read_queries(recorded.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.drop("question"), "column 'question' is missing"),
        (lambda q: q.with_columns(pl.lit(1).alias("answer")), "column 'answer' is Int32, expected String"),
        (lambda q: q.with_columns(answer=pl.lit(None, pl.String)), "column 'answer' is null in 90 rows"),
        (lambda q: pl.concat([q, q.head(2)]), "2 keys .query_id. stand twice"),
        (lambda q: q.with_columns(pl.lit(3).alias("image_group")), "column 'image_group' is Int32, expected String"),
    ],
    ids=["missing", "mistyped", "null", "twice", "optional mistyped"],
)
def test_query_table_that_breaks_its_contract_is_refused(recorded: Recorded, change: Any, message: str) -> None:
    recorded.write_queries(change(recorded.queries))
    with pytest.raises(DataError, match=message):
        read_queries(recorded.folder)


def test_source_folder_comes_from_the_setting_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("ARMS_REAL_DATA", str(tmp_path / "b"))
    assert source_folder(str(tmp_path / "a"), where="queries.folder") == (tmp_path / "a").resolve()
    assert source_folder(None, where="queries.folder") == (tmp_path / "b").resolve()
    with pytest.raises(ConfigError, match=r"^queries\.folder names .*no such folder"):
        source_folder(str(tmp_path / "c"), where="queries.folder")


def test_pixel_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_pixels must be 1 or more, not 0"):
        QueriesSettings(source="recorded", max_pixels=0)


def test_unset_source_ends_the_stage_with_2_and_says_what_to_set(make_tree: MakeTree) -> None:
    tree = make_tree()
    params = tree.params()
    params["queries"]["folder"] = None
    tree.write_params(params)
    result = tree.stage("queries")
    assert result.returncode == 2
    assert "Set ARMS_REAL_DATA to a folder that holds queries.parquet" in result.stderr
    assert "Traceback" not in result.stderr


def test_environment_names_the_source_where_params_do_not(make_tree: MakeTree, recorded: Recorded) -> None:
    tree = make_tree()
    params = tree.params()
    params["queries"]["folder"] = None
    tree.write_params(params)
    assert tree.stage("queries", ARMS_REAL_DATA=str(recorded.folder)).returncode == 0
    assert tree.table("queries/queries").height == 90


def test_bad_picture_ends_the_stage_with_1_and_leaves_what_stood_there(make_tree: MakeTree, recorded: Recorded) -> None:
    tree = make_tree()
    assert tree.stage("queries").returncode == 0
    before = tree.sha256("queries")
    (recorded.folder / "images/verdicts/007.png").write_bytes(b"")
    result = tree.stage("queries")
    assert result.returncode == 1
    assert "query verdicts/007" in result.stderr
    assert "Traceback" not in result.stderr
    assert tree.sha256("queries") == before
    assert not tree.leftovers()


def test_same_source_gives_the_same_bytes(make_tree: MakeTree, recorded: Recorded) -> None:
    tree = make_tree()
    tree.stage("queries")
    before = tree.sha256("queries")
    recorded.write_queries(recorded.queries.reverse())
    tree.stage("queries")
    assert tree.sha256("queries") == before


SANDBOX = {"source": "sandbox", "sandbox": {"seed": 3, "num_queries": 14}}


def test_sandbox_questions_come_the_checked_way_and_always_the_same(make_tree: MakeTree) -> None:
    tree = make_tree(queries=SANDBOX)
    result = tree.stage("queries")
    assert result.returncode == 0, result.stderr
    assert "14 queries, 7 pictures" in result.stderr
    assert tree.table("queries/queries")["image"].str.starts_with("reading/").sum() == 2
    before = tree.sha256("queries")
    assert tree.stage("queries", PYTHONHASHSEED="7").returncode == 0
    assert tree.sha256("queries") == before


def test_sandbox_source_without_its_settings_ends_the_stage_with_2(make_tree: MakeTree) -> None:
    result = make_tree(queries={"source": "sandbox"}).stage("queries")
    assert result.returncode == 2
    assert "needs `sandbox: {seed: 0, num_queries: 1000}`" in result.stderr


def test_sandbox_that_cannot_make_questions_ends_the_stage_with_1_and_its_last_line(make_tree: MakeTree) -> None:
    tree = make_tree(queries=SANDBOX)
    (tree.folder / "sandbox/words.json").write_text('{"names": ')
    result = tree.stage("queries")
    assert result.returncode == 1
    assert "the sandbox made no questions" in result.stderr
    assert "JSONDecodeError" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tree.folder / "queries").exists()


def test_query_set_may_stand_in_a_table_of_somebodys_own(
    make_tree: MakeTree, recorded: Recorded, tmp_path: Path
) -> None:
    columns = {"query_id": "id", "question": "prompt", "answer": "gold", "image": "picture"}
    frame = recorded.queries.rename(columns).with_columns(pl.col("choices").list.join("|"))
    kept = ("benchmark", "task", "answer_type", "choices", "image_group", "template", "licence")
    frame.select(*columns.values(), *kept).write_csv(tmp_path / "mine.csv")
    mapping = {
        "file": str(tmp_path / "mine.csv"),
        "columns": columns | {name: name for name in kept},
        "constants": {"language": "en"},
        "images": str(recorded.folder),
    }
    tree = make_tree(queries={"source": "table", "table": mapping})
    result = tree.stage("queries")
    assert result.returncode == 0, result.stderr
    expected = read_queries(recorded.folder).drop("image").sort("query_id")
    assert tree.table("queries/queries").drop("image").equals(expected)


def test_source_table_needs_its_section() -> None:
    with pytest.raises(ValueError, match="source table needs `table"):
        QueriesSettings(source="table")


def test_mapping_with_a_wrong_column_ends_the_stage_with_2(make_tree: MakeTree, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,prompt\n1,what\n")
    mapping = {"file": str(tmp_path / "mine.csv"), "columns": {"query_id": "id", "question": "promt"}}
    tree = make_tree(queries={"source": "table", "table": mapping})
    result = tree.stage("queries")
    assert result.returncode == 2
    assert "queries.table: benchmark is missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_of_the_stage_tells_its_sources(make_tree: MakeTree) -> None:
    result = make_tree().run("python", "-m", "tasks.queries", "--help")
    assert result.returncode == 0
    assert "Source `table`: a\ncsv, tsv, parquet or jsonl file" in result.stdout
