from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from arms_model.errors import ConfigError, DataError
from arms_model.settings import parse
from tasks.common.mapped import TableMapping, copy_query_set, read_outputs, read_queries, source_paths
from tasks.common.mapped import pictures as read_pictures
from tasks.common.tables import SCHEMAS, check_table

CONSTANTS = {"benchmark": "mine", "task": "reading", "language": "en", "answer_type": "free"}
COLUMNS: dict[str, str | list[str]] = {"query_id": "id", "question": "prompt", "answer": "gold", "image": "picture"}
ROWS = [
    {"id": "q1", "prompt": 'Which word, "here"?', "gold": "ab, c", "picture": "one.png"},
    {"id": "q2", "prompt": "Two\nlines?", "gold": "7", "picture": "sub/two.png"},
]
WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "csv": lambda frame, path: frame.write_csv(path),
    "tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    "parquet": lambda frame, path: frame.write_parquet(path),
    "jsonl": lambda frame, path: frame.write_ndjson(path),
}


def _png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20 + number, 10), "teal").save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "one.png").write_bytes(_png(1))
    (folder / "sub/two.png").write_bytes(_png(2))
    return folder


def _mapping(tmp_path: Path, rows: list[dict[str, Any]] | str | bytes, kind: str = "csv", **more: Any) -> TableMapping:
    path = tmp_path / f"table.{kind}"
    if isinstance(rows, list):
        WRITERS[kind](pl.DataFrame(rows), path)
    else:
        path.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    values = {"file": str(path), "columns": COLUMNS, "constants": CONSTANTS, "images": str(tmp_path / "pictures")}
    return TableMapping(**(values | more))


def _queries(mapping: TableMapping, tmp_path: Path) -> pl.DataFrame:
    target = tmp_path / "queries"
    target.mkdir()
    queries = copy_query_set(mapping, target, max_pixels=10_000)
    check_table(queries, "queries", "here")
    return queries


@pytest.mark.parametrize("kind", WRITERS)
def test_query_set_comes_with_its_pictures_from_each_kind_of_file(tmp_path: Path, pictures: Path, kind: str) -> None:
    queries = _queries(_mapping(tmp_path, ROWS, kind), tmp_path)
    assert queries.schema == SCHEMAS["queries"]
    row = queries.row(0, named=True)
    digest = hashlib.sha256(_png(1)).hexdigest()
    assert row == {
        "query_id": "q1", "benchmark": "mine", "task": "reading", "language": "en", "question": 'Which word, "here"?',
        "choices": None, "answer": "ab, c", "answer_type": "free", "image": f"{digest[:16]}.png",
        "image_sha256": digest, "image_group": digest, "template": digest, "source_image_sha256": None, "licence": None,
    }  # fmt: skip
    assert queries["question"][1] == "Two\nlines?"
    assert (tmp_path / "queries/images" / row["image"]).read_bytes() == _png(1)


def test_pictures_may_stand_in_the_table_as_bytes_or_as_the_hub_keeps_them(tmp_path: Path) -> None:
    cells: dict[str, Any] = {"bytes": _png(1), "struct": {"bytes": _png(1), "path": "one.png"}}
    for name, cell in cells.items():
        folder = tmp_path / name
        folder.mkdir()
        mapping = _mapping(folder, [ROWS[0] | {"picture": cell}], "parquet", images=None)
        queries = _queries(mapping, folder)
        assert queries["image_sha256"].to_list() == [hashlib.sha256(_png(1)).hexdigest()]


@pytest.mark.parametrize(
    ("cells", "kind", "columns", "expected"),
    [
        ({"options": ["x", "y, z"]}, "parquet", "options", ["x", "y, z"]),
        ({"options": ["x", 2]}, "jsonl", "options", ["x", "2"]),
        ({"options": "x| y, z"}, "csv", "options", ["x", "y, z"]),
        ({"a": "x", "b": "y", "c": ""}, "csv", ["a", "b", "c"], ["x", "y"]),
        ({"a": 3, "b": 4.5}, "parquet", ["a", "b"], ["3", "4.5"]),
        ({"options": ""}, "csv", "options", None),
    ],
    ids=["list", "mixed list", "separated", "columns", "columns of numbers", "none"],
)
def test_choices_come_from_a_list_a_text_or_columns(
    tmp_path: Path, pictures: Path, cells: dict[str, Any], kind: str, columns: Any, expected: list[str] | None
) -> None:
    rows: Any = [ROWS[0] | cells]
    if kind == "jsonl":
        rows = json.dumps(rows[0])
    mapping = _mapping(tmp_path, rows, kind, columns=COLUMNS | {"choices": columns})
    assert _queries(mapping, tmp_path)["choices"].to_list() == [expected]


def test_optional_columns_of_the_table_are_taken(tmp_path: Path, pictures: Path) -> None:
    rows = [row | {"shot": "album 1", "form": None} for row in ROWS]
    columns = COLUMNS | {"image_group": "shot", "template": "form"}
    queries = _queries(_mapping(tmp_path, rows, columns=columns), tmp_path)
    assert queries["image_group"].to_list() == queries["template"].to_list() == ["album 1"] * 2


def test_numbers_become_texts_where_texts_are_needed(tmp_path: Path, pictures: Path) -> None:
    rows = [ROWS[0] | {"id": 17, "gold": 2.5}]
    assert _queries(_mapping(tmp_path, rows, "parquet"), tmp_path).select("query_id", "answer").rows() == [
        ("17", "2.5")
    ]


def test_json_lines_may_mix_kinds_and_leave_keys_out(tmp_path: Path, pictures: Path) -> None:
    lines = [ROWS[0] | {"gold": 3}, ROWS[1] | {"licence": "MIT"}]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    queries = _queries(_mapping(tmp_path, text, "jsonl", columns=COLUMNS | {"licence": "licence"}), tmp_path)
    assert queries.select("answer", "licence").rows() == [("3", None), ("7", "MIT")]


def test_pictures_that_cannot_be_used_are_all_named(tmp_path: Path, pictures: Path) -> None:
    (pictures / "sub/two.png").write_bytes(b"<html>not found</html>")
    rows = [ROWS[0] | {"picture": "none.png"}, ROWS[1]]
    with pytest.raises(DataError) as caught:
        _queries(_mapping(tmp_path, rows), tmp_path)
    text = str(caught.value)
    assert "pictures that cannot be used, 2 in all" in text
    assert "query q1: " in text
    assert "none.png is missing" in text
    assert "query q2: picture" in text
    assert "is no picture that can be read" in text


@pytest.mark.parametrize(
    "name", ["../secret.png", "sub/../../secret.png", "link.png", "sub\\..\\..\\secret.png", "x" * 5000, "a\0b"]
)
def test_picture_outside_its_folder_is_not_followed(tmp_path: Path, pictures: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(_png(3))
    (pictures / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"leads out of|cannot be a file"):
        _queries(_mapping(tmp_path, [ROWS[0] | {"picture": name}]), tmp_path)


def test_absolute_path_is_not_followed_out_of_the_folder(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "secret.png").write_bytes(_png(3))
    with pytest.raises(DataError, match="leads out of"):
        _queries(_mapping(tmp_path, [ROWS[0] | {"picture": str(tmp_path / "secret.png")}]), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": COLUMNS | {"anser": "gold"}}, "unknown column 'anser'; did you mean 'answer'?"),
        ({"columns": COLUMNS | {"answer": "golds"}}, r"columns.answer: .* has no column 'golds'; did you mean 'gold'?"),
        ({"constants": {"benchmark": "mine"}}, "task is missing; name its column in columns"),
        ({"columns": COLUMNS | {"image_sha256": "gold"}}, "unknown column 'image_sha256'"),
        ({"images": None}, "queries.table.images: name the folder"),
        ({"images": "nowhere"}, "queries.table.images: name the folder .* there is no folder nowhere"),
        ({"file": "nowhere.csv"}, "queries.table.file names nowhere.csv, but there is no such file"),
    ],
)
def test_mapping_that_does_not_fit_is_the_users_mistake(
    tmp_path: Path, pictures: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _queries(_mapping(tmp_path, ROWS, **change), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"file": "a.xlsx", "columns": {}}, "file must end in .csv, .tsv, .parquet, .jsonl, not 'a.xlsx'"),
        (
            {"file": "a.csv", "columns": {"task": "t"}, "constants": {"task": "t"}},
            "task is among columns and constants",
        ),
        ({"file": "a.csv", "columns": {"answer": ["a", "b"]}}, "columns.answer must name one column"),
        ({"file": "a.csv", "columns": {}, "list_separator": ""}, "list_separator may not be empty"),
        ({"file": "a.csv", "columns": {}, "image": "x"}, "queries.table.image: unknown key; did you mean 'images'?"),
        ({"file": "a.csv", "columns": {"answer": 3}}, "queries.table.columns.answer"),
    ],
)
def test_mapping_that_cannot_be_is_refused_as_params_are_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TableMapping, values, "queries.table")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("id,prompt,gold,picture\nq1,a,b,c,d\n", "csv", "is no readable csv file"),
        (
            "id,prompt,gold,picture\nq1,caf\u00e9,b,one.png\n".encode("latin-1"),
            "csv",
            "is no readable csv file in UTF-8",
        ),
        ("", "csv", "is no readable csv file"),
        ("id\tprompt\tgold\tpicture\n", "tsv", "has no rows"),
        (b"PAR1 cut off", "parquet", "is no readable parquet file"),
        ('{"id": "q1", "prompt"', "jsonl", "row 1: no JSON"),
        ('{"id": ' + "[" * 100_000, "jsonl", "row 1: no JSON"),
        ('{"id": ' + "9" * 5000 + "}", "jsonl", "row 1: no JSON"),
        ("[1, 2]\n", "jsonl", "row 1: expected an object, got list"),
        ('{"id": "caf\u00e9"}\n'.encode("latin-1"), "jsonl", "is not in UTF-8"),
        ("id,prompt,gold,picture\nq1,what,,one.png\n", "csv", "column 'answer' is null in 1 rows"),
        ("id,prompt,gold,picture\nq1,what,a,\n", "csv", "1 in all, first: query q1: its image cell is empty"),
        ("id,prompt,gold,picture\nq1,a,b,one.png\nq1,a,b,one.png\n", "csv", "1 keys .query_id. stand twice"),
    ],
)
def test_table_that_breaks_its_form_is_refused(
    tmp_path: Path, pictures: Path, content: str | bytes, kind: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _queries(_mapping(tmp_path, content, kind), tmp_path)


def test_answer_type_that_is_none_is_named(tmp_path: Path, pictures: Path) -> None:
    mapping = _mapping(tmp_path, ROWS, constants=CONSTANTS | {"answer_type": "open"})
    with pytest.raises(DataError, match=r"answer_type must be choice or free, got 2 in all, first: \('q1', 'open'\)"):
        _queries(mapping, tmp_path)


def test_answer_that_is_none_of_the_choices_is_named(tmp_path: Path, pictures: Path) -> None:
    rows = [ROWS[0] | {"options": "x|y", "gold": gold, "id": gold} for gold in ("y", " b ", "C", "z")]
    columns, constants = COLUMNS | {"choices": "options"}, CONSTANTS | {"answer_type": "choice"}
    with pytest.raises(DataError, match=r"none of their choices, 2 in all, first: C \('C'\); z \('z'\)"):
        _queries(_mapping(tmp_path, rows, columns=columns, constants=constants), tmp_path)


@pytest.mark.parametrize(
    ("cells", "kind", "columns"),
    [
        ({"a": "x", "b": "", "c": "y"}, "csv", ["a", "b", "c"]),
        ({"options": "x||y"}, "csv", "options"),
        ({"options": ["x", None, "y"]}, "parquet", "options"),
        ({"options": [" ", "y"]}, "jsonl", "options"),
    ],
)
def test_choice_that_is_empty_before_others_is_named(
    tmp_path: Path, pictures: Path, cells: dict[str, Any], kind: str, columns: Any
) -> None:
    mapping = _mapping(tmp_path, [ROWS[1] | cells], kind, columns=COLUMNS | {"choices": columns})
    with pytest.raises(DataError, match=r"letters would shift, in rows: 1 in all, first: 1"):
        _queries(mapping, tmp_path)


def test_choices_that_are_no_texts_are_refused(tmp_path: Path, pictures: Path) -> None:
    rows = [ROWS[0] | {"options": [{"a": 1}, {"a": 2}]}]
    with pytest.raises(DataError, match="choices needs lists of texts"):
        _queries(_mapping(tmp_path, rows, "parquet", columns=COLUMNS | {"choices": "options"}), tmp_path)


def test_names_with_brackets_and_stars_are_plain_names(tmp_path: Path, pictures: Path) -> None:
    for kind in WRITERS:
        path = tmp_path / f"part[1]*.{kind}"
        WRITERS[kind](pl.DataFrame(ROWS), path)
        (tmp_path / kind).mkdir()
        assert _queries(_mapping(tmp_path, ROWS, kind, file=str(path)), tmp_path / kind).height == 2


def test_pictures_in_a_table_are_read_apart_from_its_texts_and_in_their_order(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"id": f"q{n}", "picture": b"%d" % n} for n in range(600)]
    mapping = _mapping(tmp_path, rows, "parquet", images=None)
    queries = read_queries(mapping)
    assert "image" not in queries.columns  # they need not fit into memory
    assert list(read_pictures(queries, mapping)) == [(f"q{n}", b"%d" % n) for n in range(600)]


@pytest.mark.parametrize(
    ("cell", "shown"), [('"half \\ud83d"', "half \ufffd"), ("1" + "0" * 30, "1" + "0" * 30), ("7", "7")]
)
def test_odd_values_of_json_lines_become_texts(tmp_path: Path, pictures: Path, cell: str, shown: str) -> None:
    text = json.dumps(ROWS[0] | {"gold": "@"}).replace('"@"', cell)
    assert _queries(_mapping(tmp_path, text, "jsonl"), tmp_path)["answer"].to_list() == [shown]


def test_list_is_no_text(tmp_path: Path, pictures: Path) -> None:
    mapping = _mapping(tmp_path, [ROWS[0] | {"gold": ["a"]}], "parquet")
    with pytest.raises(DataError, match=r"column 'gold' is List\(String\); answer needs String"):
        _queries(mapping, tmp_path)


OUTPUT_COLUMNS: dict[str, str | list[str]] = {"query_id": "id", "vlm": "model", "output": "response"}


def _outputs(tmp_path: Path, rows: list[dict[str, Any]] | str, kind: str = "csv", **columns: str) -> pl.DataFrame:
    mapping = _mapping(tmp_path, rows, kind, columns=OUTPUT_COLUMNS | columns, constants={}, images=None)
    return read_outputs(mapping)


@pytest.mark.parametrize("kind", WRITERS)
def test_answers_come_as_the_table_collect(tmp_path: Path, kind: str) -> None:
    rows = [{"id": "q1", "model": "m-1b", "response": "b"}, {"id": "q2", "model": "m-1b", "response": "a, b"}]
    outputs = _outputs(tmp_path, rows, kind)
    assert outputs.schema == SCHEMAS["collect"]
    assert outputs.select("query_id", "vlm", "output").rows() == [("q1", "m-1b", "b"), ("q2", "m-1b", "a, b")]


def test_texts_of_a_csv_become_numbers_and_truths(tmp_path: Path) -> None:
    text = 'id,model,response,ok,s,tokens\nq1,m,b,True, 0.5,12\nq2,m,,no,,\nq3,m,"",1,2,7.0\n'
    outputs = _outputs(tmp_path, text, reference_correct="ok", latency_s="s", completion_tokens="tokens")
    shown = outputs.select("output", "imported_correct", "latency_s", "completion_tokens")
    assert shown.rows() == [("b", True, 0.5, 12), (None, False, None, None), ("", True, 2.0, 7)]


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        (
            "latency_s",
            ["0.5", "fast"],
            "column 'x' should hold latency_s as Float64, but 1 values are none .row 2: 'fast'",
        ),
        ("latency_s", ["0.5", "nan"], "row 2: 'nan'"),
        ("prompt_tokens", ["12", "1.5"], "should hold prompt_tokens as Int64, but 1 values are none .row 2: '1.5'"),
        ("reference_correct", ["maybe", "true"], "should hold reference_correct as Boolean.*row 1: 'maybe'"),
    ],
)
def test_value_that_is_no_number_or_truth_is_named_with_its_row(
    tmp_path: Path, column: str, cells: list[str], message: str
) -> None:
    rows = [{"id": f"q{number}", "model": "m", "response": "b", "x": cell} for number, cell in enumerate(cells)]
    with pytest.raises(DataError, match=message):
        _outputs(tmp_path, rows, **{column: "x"})


def test_answers_that_break_the_contract_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither output nor reference_correct nor error"):
        _outputs(tmp_path, "id,model,response\nq1,m,\n")
    with pytest.raises(DataError, match="stand twice"):
        _outputs(tmp_path, "id,model,response\nq1,m,a\nq1,m,b\n")
    with pytest.raises(ConfigError, match="map at least one of output, reference_correct and error"):
        read_outputs(TableMapping(file="a.csv", columns={"query_id": "id", "vlm": "model"}))
    with pytest.raises(ConfigError, match="vlm is missing; name its column in columns, or a text in constants"):
        read_outputs(TableMapping(file="a.csv", columns={"query_id": "id", "output": "response"}))


def test_one_vlm_may_be_a_constant(tmp_path: Path) -> None:
    columns: dict[str, str | list[str]] = {"query_id": "id", "output": "response"}
    mapping = _mapping(tmp_path, "id,response\nq1,a\nq2,b\n", columns=columns, constants={"vlm": "m"}, images=None)
    assert read_outputs(mapping)["vlm"].to_list() == ["m", "m"]


def test_source_paths_are_those_of_the_mapping_made_absolute(tmp_path: Path) -> None:
    assert source_paths({"file": "a.csv", "images": "pictures"}, tmp_path) == {
        "file": str(tmp_path / "a.csv"), "images": str(tmp_path / "pictures"),
    }  # fmt: skip
    assert source_paths({"file": str(tmp_path / "b.csv")}, tmp_path / "else") == {"file": str(tmp_path / "b.csv")}
