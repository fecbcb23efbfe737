import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import inside
from tasks.importers import reading
from tasks.importers.choices import answer_type, without_letters
from tasks.importers.embedded import picture_bytes, texts
from tasks.importers.reading import read_json, read_json_lines, read_rows


def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, write_xlsx: Callable[..., None]) -> None:
    rows = [{"index": "a", "text": 'two\nlines, "quoted"\tand more'}, {"index": "b", "text": None}]
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_ndjson(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    write_xlsx(tmp_path / "a.xlsx", rows)
    for kind in ("parquet", "csv", "tsv", "jsonl", "json", "xlsx"):
        assert list(read_rows(tmp_path / f"a.{kind}")) == list(enumerate(rows, start=1)), kind


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfindex,text\r\n1,x\r\n")
    assert list(read_rows(tmp_path / "a.csv")) == [(1, {"index": "1", "text": "x"})]


def test_numbers_of_an_xlsx_come_as_whole_texts(tmp_path: Path, write_xlsx: Callable[..., None]) -> None:
    write_xlsx(tmp_path / "a.xlsx", [{"index": 7, "hit": 0.5}, {"index": 1000007, "hit": 1}])
    assert [row for _, row in read_rows(tmp_path / "a.xlsx")] == [
        {"index": "7", "hit": "0.5"}, {"index": "1000007", "hit": "1"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b'x\ty\n1\t"cut off', "line 2: unexpected end of data"),
        ("a.tsv", b'x\ty\n1\t"a" b\n', "line 2: '\t' expected"),
        ("a.tsv", b"x\ty\n1\n", "line 2: 1 cells, but the first line names 2 columns"),
        ("a.tsv", b"x\tx\n1\t2\n", "stands twice"),
        ("a.tsv", "x\ty\n1\té\n".encode("latin-1"), "byte 0xe9 is not UTF-8; iconv"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16-le"), "is UTF-16 or no text"),
        ("a.json", b'[{"x": 1}, {"x"', "no whole JSON"),
        ("a.json", b'{"x": 1}', "expected a list of JSON objects"),
        ("a.json", b'[{"x": ' + b"9" * 5000 + b"}]", "no whole JSON"),
        ("a.jsonl", b'{"x": 1}\n[1]\n', "line 2: a list"),
        ("a.parquet", b"PAR1 and no more", "no readable parquet"),
        ("a.xlsx", b"PK\x03\x04 and no more", "no whole xlsx"),
    ],
)
def test_broken_table_is_refused_with_its_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        list(read_rows(tmp_path / name))
    assert message in str(refusal.value)
    assert str(tmp_path / name) in str(refusal.value)


def test_missing_or_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        read_rows(tmp_path / "a.tsv")
    with pytest.raises(DataError, match="is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="is missing"):
        list(read_json_lines(tmp_path))
    for name in ("a.pkl", "a.PICKLE", "a.npy"):
        with pytest.raises(ConfigError, match="is a pickle"):
            read_rows(tmp_path / name)
    with pytest.raises(ConfigError, match=r"ending '\.doc'"):
        read_rows(tmp_path / "a.doc")


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 10)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 10)
    (tmp_path / "a.json").write_text('["0123456789"]')
    (tmp_path / "a.jsonl").write_text('{"x": "0123456789"}')
    (tmp_path / "a.csv").write_text("x\n" + "0" * 20)
    with pytest.raises(DataError, match="at most 10 are read"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="line 1: longer than 10"):
        list(read_json_lines(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="line 2: longer than 10"):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_rows_are_read_one_by_one(kind: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"index": range(2000), "image": ["x" * 50_000] * 2000})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        frame.write_parquet(path, row_group_size=100)
    else:
        frame.write_csv(path, separator="\t") if kind == "tsv" else frame.write_ndjson(path)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # of 100 MB


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.png", "a/../../a.png", "/a.png", "C:\\a.png", "C:a.png", "a\\b.png", "file:///a.png",
             "a\0.png", "x" * 5000, "out.png", "round", "deep/a.png"]
)  # fmt: skip
def test_name_that_is_no_file_inside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"1")
    (folder / "out.png").symlink_to(tmp_path / "a.png")
    (folder / "round").symlink_to(folder / "round")
    with pytest.raises(DataError):
        inside(folder, name)


def test_name_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/a b.png").write_bytes(b"1")
    (tmp_path / "real/link.png").symlink_to("deep/a b.png")
    (tmp_path / "folder").symlink_to("real")
    for name in ("deep/a b.png", "./deep/a b.png", "link.png", str(tmp_path / "real/deep/a b.png")):
        assert inside(tmp_path / "folder", name).read_bytes() == b"1"


def test_lists_written_as_text_are_read_and_nothing_is_run() -> None:
    assert texts("['a', \"it's\"]") == ["a", "it's"]
    assert texts('["a", "b"]') == texts(["a", "b"]) == ["a", "b"]
    for text in ("[1, 2)", "[0, 1]", "__import__('os').system('x')", "[__import__('os').system('x')]", "(" * 500):
        assert texts(text) == [text]
    assert texts(None) == texts("") == []


def test_base64_is_read_whole_or_refused() -> None:
    assert picture_bytes("data:image/png;base64,aGVs\nbG8=") == picture_bytes("aGVsbG8=") == b"hello"
    for text in ("aGVsbG8", "aGVs*G8=", "ünicode"):
        with pytest.raises(DataError, match="no whole base64"):
            picture_bytes(text)


def test_golds_and_choices_are_told_apart() -> None:
    assert without_letters(["A. red", "(B) green", "C: blue"]) == ["red", "green", "blue"]
    assert without_letters(["B. red", "A. green"]) == ["B. red", "A. green"]
    cases: list[tuple[str, Any, str]] = [
        ("B", ["x", "y"], "choice"), ("y", ["x", "y"], "choice"), ("7", ["x", "y"], "free"), ("C", None, "choice"),
        ("No", None, "free"),
    ]  # fmt: skip
    assert [answer_type(gold, choices) for gold, choices, _ in cases] == [kind for *_, kind in cases]
