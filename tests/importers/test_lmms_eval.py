import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.common import recorded
from tasks.importers.lmms_eval import main

LOG = "20250101_120000_samples_toy.jsonl"


def _write_log(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """A log as new versions write it: doc without its picture, answers as texts."""
    return [
        {
            "doc_id": 0,
            "doc": {"question": "Which colour?", "options": ["A. red", "B. green"], "category": "colour"},
            "target": "B",
            "filtered_resps": "B",
            "resps": ["The answer is B."],
            "input": "Which colour?\nA. red\nB. green\nAnswer with the letter.",
            "doc_hash": "00",
            "token_counts": [{"input_tokens": 70, "output_tokens": 5}],
            "exact_match": 1.0,
        },
        {
            "doc_id": 1,
            "doc": {"question": "How many squares?", "options": [], "category": "count"},
            "target": "3",
            "filtered_resps": "4",
            "input": "How many squares?",
            "doc_hash": "01",
            "token_counts": [None],
            "exact_match": 0.0,
        },
    ]


@pytest.fixture
def images(tmp_path: Path, picture: Callable[[int], bytes]) -> Path:
    """A folder of pictures named by doc_id."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


@pytest.fixture
def dataset(tmp_path: Path, picture: Callable[[int], bytes]) -> list[Path]:
    """The data set's split in two parquet files, pictures as the hub stores them; row 2 is asked in no log."""
    rows = [
        {"question": question, "image": {"bytes": picture(number), "path": f"{number}.png"}, "level": number}
        for number, question in enumerate(["Which colour?", "How many squares?", "Which shape?"])
    ]
    pl.DataFrame(rows[:1]).write_parquet(tmp_path / "val-0.parquet")
    pl.DataFrame(rows[1:]).write_parquet(tmp_path / "val-1.parquet")
    return [tmp_path / "val-0.parquet", tmp_path / "val-1.parquet"]


def _old(line: dict[str, Any]) -> dict[str, Any]:
    """The line as older versions write it: answers in lists, `arguments` in place of `input`."""
    old = {name: value for name, value in line.items() if name not in ("input", "resps", "filtered_resps")}
    answer = line.get("resps", [line["filtered_resps"]])[0]
    return old | {"arguments": [line["input"], {"until": ["\n"]}], "resps": [[answer]], "filtered_resps": [answer]}


@pytest.mark.parametrize("version", ["new", "old"])
def test_logs_become_a_recorded_folder(
    version: str, tmp_path: Path, lines: Any, images: Path, run_importer: Any, picture: Any
) -> None:
    log = _write_log(tmp_path / "vlm-a" / LOG, lines if version == "new" else map(_old, lines))
    options = ("--images", images, "--task-field", "category", "--metric", "exact_match")
    run = run_importer(main, log, *options, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    queries = recorded.read_queries(tmp_path / "out")
    assert queries.select("query_id", "task", "question", "answer", "answer_type").rows() == [
        ("toy/0", "colour", "Which colour?\nA. red\nB. green", "B", "choice"),
        ("toy/1", "count", "How many squares?", "3", "free"),
    ]
    assert queries["choices"].to_list() == [["red", "green"], None]
    assert [(tmp_path / "out" / image).read_bytes() for image in queries["image"]] == [picture(0), picture(1)]
    outputs = recorded.read_outputs(tmp_path / "out")
    assert outputs.select("vlm", "output", "imported_correct", "prompt_tokens", "completion_tokens").rows() == [
        ("vlm-a", "The answer is B.", True, 70, 5), ("vlm-a", "4", False, None, None),
    ]  # fmt: skip


def test_imported_folder_goes_through_the_stages(
    tmp_path: Path, lines: Any, images: Path, run_importer: Any, labelled: Any
) -> None:
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    assert run_importer(main, log, "--images", images, "--out", tmp_path / "out").code == 0
    assert labelled(tmp_path / "out").select("query_id", "correct").rows() == [("toy/0", True), ("toy/1", False)]


def test_pictures_come_from_the_data_set_and_only_those_asked(
    tmp_path: Path, lines: Any, dataset: list[Path], run_importer: Any, picture: Any
) -> None:
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    run = run_importer(main, log, "--dataset", *dataset, "--task-field", "level", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    queries = recorded.read_queries(tmp_path / "out")
    assert [(tmp_path / "out" / image).read_bytes() for image in queries["image"]] == [picture(0), picture(1)]
    assert len([path for path in (tmp_path / "out/images").rglob("*") if path.is_file()]) == 2
    assert queries["task"].to_list() == ["0", "1"]


@pytest.mark.parametrize("has_doc", [True, False])
def test_data_set_of_another_split_is_refused(
    has_doc: bool, tmp_path: Path, lines: Any, dataset: list[Path], run_importer: Any
) -> None:
    if not has_doc:
        for line in lines:
            del line["doc"]
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    run = run_importer(main, log, "--dataset", *reversed(dataset), "--out", tmp_path / "out")
    assert run.code == 1
    assert "another split" in run.err
    assert not (tmp_path / "out").exists()


def test_logs_without_doc_take_the_question_from_the_prompt(
    tmp_path: Path, lines: Any, images: Path, run_importer: Any
) -> None:
    del lines[0]["doc"]
    log = _write_log(tmp_path / "vlm-a" / LOG, lines[:1])
    assert run_importer(main, log, "--images", images, "--out", tmp_path / "out").code == 0
    query = recorded.read_queries(tmp_path / "out").row(0, named=True)
    assert query["question"] == lines[0]["input"]
    assert (query["answer"], query["answer_type"], query["choices"]) == ("B", "choice", None)


@pytest.mark.parametrize("how", ["name", "base64", "data url", "dict"])
def test_picture_may_be_named_by_or_stand_in_a_field(
    how: str, tmp_path: Path, lines: Any, images: Path, run_importer: Any, picture: Any
) -> None:
    encoded = base64.b64encode(picture(1) + bytes(200)).decode()
    cells = {
        "name": "1.png", "base64": encoded, "data url": f"data:image/png;base64,{encoded}", "dict": {"bytes": encoded},
    }  # fmt: skip
    lines[0]["doc"]["img"] = cells[how]
    log = _write_log(tmp_path / "vlm-a" / LOG, lines[:1])
    run = run_importer(main, log, "--images", images, "--image-field", "img", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    image = recorded.read_queries(tmp_path / "out")["image"][0]
    assert (tmp_path / "out" / image).read_bytes().startswith(picture(1))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "http://example.org/1.png", "link.png"])
def test_picture_outside_the_folder_is_not_followed(
    name: str, tmp_path: Path, lines: Any, images: Path, run_importer: Any, picture: Any
) -> None:
    (tmp_path / "secret.png").write_bytes(picture(2))
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    lines[0]["doc"]["image"] = name
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    run = run_importer(main, log, "--images", images, "--out", tmp_path / "out")
    assert run.code == 1
    assert "line 1" in run.err
    assert not (tmp_path / "out").exists()


def test_queries_we_cannot_use_are_left_out_and_counted(
    tmp_path: Path, lines: Any, images: Path, run_importer: Any
) -> None:
    odd = [
        lines[1] | {"doc_id": 2, "target": "['3', 'three']"},
        lines[1] | {"doc_id": 3, "filtered_resps": [[[-1.5, False]], [[-2.5, True]]]},
        lines[1] | {"doc_id": 4},
        lines[1] | {"doc_id": 5, "doc": lines[1]["doc"] | {"image": ["0.png", "1.png"]}},
    ]
    log = _write_log(tmp_path / "vlm-a" / LOG, lines + odd)
    run = run_importer(main, log, "--images", images, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    for reason in ("several gold answers", "no answer as text", "no picture", "several pictures"):
        assert f"left out: 1 queries: {reason}" in run.out
    assert recorded.read_queries(tmp_path / "out").height == 2


def test_of_several_golds_only_the_metric_is_kept(tmp_path: Path, lines: Any, images: Path, run_importer: Any) -> None:
    lines[1]["target"] = "['4', 'four']"
    log = _write_log(tmp_path / "vlm-a" / LOG, lines[1:])
    run = run_importer(main, log, "--images", images, "--metric", "exact_match", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    outputs = recorded.read_outputs(tmp_path / "out")
    assert outputs.select("output", "imported_correct").rows() == [(None, False)]
    run = run_importer(main, log, "--images", images, "--metric", "acc", "--out", tmp_path / "other")
    assert (run.code, "no metric 'acc'" in run.err) == (1, True)


@pytest.mark.parametrize(("base", "gold"), [(0, "1"), (1, "2")])
def test_golds_may_count_the_choices(
    base: int, gold: str, tmp_path: Path, lines: Any, images: Path, run_importer: Any
) -> None:
    lines[0]["target"] = gold
    log = _write_log(tmp_path / "vlm-a" / LOG, lines[:1])
    options = ("--images", images, "--answers-count-from", base)
    assert run_importer(main, log, *options, "--out", tmp_path / "out").code == 0
    assert recorded.read_queries(tmp_path / "out")["answer"][0] == "B"
    lines[0]["target"] = "7"
    log = _write_log(tmp_path / "vlm-a" / LOG, lines[:1])
    run = run_importer(main, log, *options, "--out", tmp_path / "other")
    assert run.code == 1
    assert "counts past the 2 choices" in run.err


def test_several_vlms_share_queries_and_a_contradiction_is_refused(
    tmp_path: Path, lines: Any, images: Path, run_importer: Any
) -> None:
    logs = [_write_log(tmp_path / vlm / LOG, lines) for vlm in ("vlm-a", "vlm-b")]
    assert run_importer(main, *logs, "--images", images, "--out", tmp_path / "out").code == 0
    assert recorded.read_outputs(tmp_path / "out").height == 4
    lines[0]["target"] = "A"
    log = _write_log(tmp_path / "vlm-c" / LOG, lines)
    run = run_importer(main, log, "--images", images, "--out", tmp_path / "out")
    assert run.code == 1
    assert "toy/0 (differs in answer)" in run.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"doc_id": 0, "target": "B", "filtered', "line 1: no whole JSON object"),
        (b"[1, 2]\n", "line 1: a list, expected a JSON object"),
        (b'{"doc_id": "x"}\n', "doc_id is 'x'"),
        (b'{"doc_id": 0, "target": "B", "filtered_resps": ["B"]}\n', "no question"),
        ('{"doc_id": 0, "target": "Bä"}\n'.encode("latin-1"), "iconv -f LATIN1"),
        ('{"doc_id": 0, "target": "B"}\n'.encode("utf-16"), "iconv -f UTF-16"),
        (b"[" * 100_000, "line 1: no whole JSON object"),
        (b"", "no query was found"),
    ],
)
def test_broken_log_is_refused(content: bytes, message: str, tmp_path: Path, images: Path, run_importer: Any) -> None:
    (tmp_path / LOG).write_bytes(content)
    run = run_importer(main, tmp_path / LOG, "--images", images, "--out", tmp_path / "out")
    assert run.code == 1
    assert message in run.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the logs hold no pictures"),
        (("--dataset", "DATASET", "--image-field", "photo"), "no column 'photo'"),
    ],
)
def test_missing_pictures_are_a_users_mistake(
    arguments: tuple[str, ...], message: str, tmp_path: Path, lines: Any, dataset: list[Path], run_importer: Any
) -> None:
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    given = [dataset[0] if argument == "DATASET" else argument for argument in arguments]
    run = run_importer(main, log, *given, "--out", tmp_path / "out")
    assert run.code == 2
    assert message in run.err


def test_log_of_another_name_needs_its_task(tmp_path: Path, lines: Any, images: Path, run_importer: Any) -> None:
    log = _write_log(tmp_path / "vlm-a/answers.jsonl", lines)
    run = run_importer(main, log, "--images", images, "--out", tmp_path / "out")
    assert (run.code, "--benchmark" in run.err) == (2, True)
    run = run_importer(main, log, "--images", images, "--benchmark", "mine", "--vlm", "x", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    assert recorded.read_outputs(tmp_path / "out").select("query_id", "vlm").row(0) == ("mine/0", "x")


@pytest.mark.parametrize("option", ["answer", "choices", "task"])
def test_field_that_is_not_there_is_named(
    option: str, tmp_path: Path, lines: Any, images: Path, run_importer: Any
) -> None:
    log = _write_log(tmp_path / "vlm-a" / LOG, lines)
    run = run_importer(main, log, "--images", images, f"--{option}-field", "catgory", "--out", tmp_path / "out")
    assert run.code == 1
    assert f"no field 'catgory', it has question, options, category; correct --{option}-field" in run.err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "example:\n  python -m tasks.importers.lmms_eval" in capsys.readouterr().out
