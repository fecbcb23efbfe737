import base64
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.common import recorded
from tasks.importers.vlmevalkit import main


def _write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def dataset(tmp_path: Path, picture: Callable[[int], bytes]) -> list[dict[str, Any]]:
    """The rows of a made-up data set; row 3 has the picture of row 1, rows 4 and 5 are none that we can use."""
    image = [base64.b64encode(picture(number)).decode() for number in range(4)]
    base = {"hint": "", "A": "", "B": "", "C": "", "category": "colour", "l2-category": "seeing", "split": "dev"}
    rows = [
        {"index": "1", "image": image[1], "question": "Which colour\nis it?", "answer": "B", "A": "blue", "B": "green"},
        {"index": "2", "image": image[2], "question": "How wide is it?", "answer": "10", "hint": "Count pixels."},
        {"index": "3", "image": "1", "question": "Is it green?", "answer": "Yes"},
        {"index": "5", "image": image[1], "question": "", "answer": "a caption"},
        {"index": "4", "image": f"['{image[1]}', '{image[2]}']", "question": "Which is wider?", "answer": "A"},
    ]
    return [base | row for row in rows]


@pytest.fixture
def results(dataset: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a VLM answered: right, wrong, a failed request, and to the row that is left out."""
    said = ["B", "It is 9 pixels wide.", "Failed to obtain answer via API.", "", "A"]
    return [
        {"index": int(row["index"]), "question": row["question"], "answer": row["answer"], "prediction": prediction}
        for row, prediction in zip(dataset, said, strict=True)
    ]


def _write_results(path: Path, rows: list[dict[str, Any]], write_xlsx: Callable[..., None]) -> None:
    if path.suffix == ".xlsx":
        write_xlsx(path, rows)
    elif path.suffix == ".tsv":
        _write_tsv(path, rows)
    else:
        path.write_text(json.dumps(rows))


@pytest.mark.parametrize("kind", ["xlsx", "tsv", "json"])
def test_data_set_and_results_become_a_recorded_folder(
    kind: str, tmp_path: Path, dataset: Any, results: Any, write_xlsx: Any, run_importer: Any, picture: Any
) -> None:
    _write_tsv(tmp_path / "Toy_DEV.tsv", dataset)
    _write_results(tmp_path / f"vlm-a_Toy_DEV.{kind}", results, write_xlsx)
    out = tmp_path / "out"
    run = run_importer(main, tmp_path / "Toy_DEV.tsv", tmp_path / f"vlm-a_Toy_DEV.{kind}", "--out", out)
    assert run.code == 0, run.err
    assert "left out: 1 queries: several pictures" in run.out
    assert "left out: 1 queries: no question" in run.out
    queries = recorded.read_queries(out)
    assert queries["query_id"].to_list() == ["Toy_DEV/1", "Toy_DEV/2", "Toy_DEV/3"]
    assert queries["question"].to_list() == [
        "Which colour\nis it?\nA. blue\nB. green", "Count pixels.\nHow wide is it?", "Is it green?",
    ]  # fmt: skip
    assert queries["answer_type"].to_list() == ["choice", "free", "free"]
    assert queries["choices"].to_list() == [["blue", "green"], None, None]
    assert queries["task"].unique().to_list() == ["colour"]
    assert (out / queries["image"][0]).read_bytes() == picture(1)
    assert queries["image"][0] == queries["image"][2]
    outputs = recorded.read_outputs(out)
    assert outputs["vlm"].unique().to_list() == ["vlm-a"]
    assert outputs["output"].to_list() == ["B", "It is 9 pixels wide.", None]
    assert outputs["error"].to_list() == [None, None, "Failed to obtain answer via API."]


def test_imported_folder_goes_through_the_stages(
    tmp_path: Path, dataset: Any, results: Any, write_xlsx: Any, run_importer: Any, labelled: Any
) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    write_xlsx(tmp_path / "vlm-a_Toy.xlsx", results)
    assert run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.xlsx", "--out", tmp_path / "out").code == 0
    assert labelled(tmp_path / "out").select("query_id", "correct").rows() == [("Toy/1", True), ("Toy/2", False)]


def test_judged_results_keep_right_and_wrong(
    tmp_path: Path, dataset: Any, results: Any, run_importer: Any, write_xlsx: Any
) -> None:
    judged = [row | {"hit": hit} for row, hit in zip(results, [1, 0, 0, 1, 1], strict=True)]
    judged[1]["prediction"] = None  # an empty answer, which the judge called wrong
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    write_xlsx(tmp_path / "vlm-a_Toy_openai_result.xlsx", judged)
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy_openai_result.xlsx", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    outputs = recorded.read_outputs(tmp_path / "out")
    assert outputs.select("vlm", "output", "imported_correct").rows() == [
        ("vlm-a", "B", True), ("vlm-a", None, False), ("vlm-a", None, None),
    ]  # fmt: skip


def test_empty_prediction_of_unjudged_results_is_an_error_and_no_wrong_answer(
    tmp_path: Path, dataset: Any, results: Any, run_importer: Any, write_xlsx: Any
) -> None:
    results[0]["prediction"] = None
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    write_xlsx(tmp_path / "vlm-a_Toy.xlsx", results)
    assert run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.xlsx", "--out", tmp_path / "out").code == 0
    assert recorded.read_outputs(tmp_path / "out")["error"][0] == "no prediction in the result file"


def test_pictures_may_be_files_and_unpacked_data_sets_name_whole_paths(
    tmp_path: Path, dataset: Any, run_importer: Any, picture: Any
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2, 3):
        (images / f"{number}.png").write_bytes(picture(number))
    for row in dataset:
        del row["image"]
    paths = ["1.png", str(images / "2.png"), "['3.png']", "1.png", "['1.png', '2.png']"]
    _write_tsv(
        tmp_path / "Toy_local.tsv", [row | {"image_path": path} for row, path in zip(dataset, paths, strict=True)]
    )
    run = run_importer(main, tmp_path / "Toy_local.tsv", "--images", images, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    queries = recorded.read_queries(tmp_path / "out")
    assert [(tmp_path / "out" / image).read_bytes() for image in queries["image"]] == [picture(n) for n in (1, 2, 3)]
    assert queries["benchmark"].unique().to_list() == ["Toy"]
    run = run_importer(main, tmp_path / "Toy_local.tsv", "--out", tmp_path / "other")
    assert run.code == 2
    assert "--images FOLDER" in run.err


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "https://example.org/a.png", "C:\\a.png", "link.png"]
)
def test_picture_outside_the_folder_is_not_followed(
    path: str, tmp_path: Path, dataset: Any, run_importer: Any, picture: Any
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    row = dataset[1] | {"image_path": path}
    del row["image"]
    _write_tsv(tmp_path / "Toy.tsv", [row])
    run = run_importer(main, tmp_path / "Toy.tsv", "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert run.code == 1
    assert "index 2" in run.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("index", "1", "index 1 stands twice"),
        ("index", "", "no index"),
        ("image", "?" * 100, "no whole base64"),
        ("image", base64.b64encode(b"no picture at all, " * 9).decode(), "no picture that can be read"),
        ("answer", "E", "none of the 2 choices"),
        ("C", "red", "a choice is missing between others"),
    ],
)
def test_broken_row_of_the_data_set_is_named_and_nothing_is_written(
    column: str, cell: str, message: str, tmp_path: Path, dataset: Any, run_importer: Any
) -> None:
    row = dataset[0] | {"index": "7", column: cell} | ({"B": ""} if column == "C" else {})
    _write_tsv(tmp_path / "Toy.tsv", [dataset[0], row])
    run = run_importer(main, tmp_path / "Toy.tsv", "--out", tmp_path / "out")
    assert run.code == 1
    assert message in run.err
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 99}, "index 99 is not in the data set"),
        ({"prediction": "A"}, "index 1 stands twice"),
        ({"question": "Which animal is it?"}, "question 'Which animal is it?', but the data set has"),
        ({"answer": "A"}, "answer 'A', but the data set has 'B'"),
    ],
)
def test_result_that_does_not_fit_the_data_set_is_refused(
    change: Any, message: str, tmp_path: Path, dataset: Any, results: Any, run_importer: Any, write_xlsx: Any
) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    write_xlsx(tmp_path / "vlm-a_Toy.xlsx", [results[1], results[0], results[0] | change])
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.xlsx", "--out", tmp_path / "out")
    assert run.code == 1
    assert message in run.err
    assert not (tmp_path / "out").exists()


def test_picture_of_a_row_that_is_left_out_serves_the_rows_that_name_it(
    tmp_path: Path, dataset: Any, run_importer: Any, picture: Any
) -> None:
    rows = [dataset[0] | {"answer": ""}, dataset[2], dataset[1] | {"index": "6", "image": "99"}]
    _write_tsv(tmp_path / "Toy.tsv", rows)
    run = run_importer(main, tmp_path / "Toy.tsv", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    assert "left out: 1 queries: no gold answer" in run.out
    assert "left out: 1 queries: no single picture in the row that `image` names" in run.out
    queries = recorded.read_queries(tmp_path / "out")
    assert queries["query_id"].to_list() == ["Toy/3"]
    assert (tmp_path / "out" / queries["image"][0]).read_bytes() == picture(1)


def test_choices_that_carry_their_letters_lose_them(tmp_path: Path, dataset: Any, run_importer: Any) -> None:
    _write_tsv(tmp_path / "Toy.tsv", [dataset[0] | {"A": "(A) blue", "B": "(B) green"}])
    assert run_importer(main, tmp_path / "Toy.tsv", "--out", tmp_path / "out").code == 0
    query = recorded.read_queries(tmp_path / "out").row(0, named=True)
    assert (query["choices"], query["question"]) == (["blue", "green"], "Which colour\nis it?\nA. blue\nB. green")


def test_pickled_results_are_refused_with_what_to_do(tmp_path: Path, dataset: Any, run_importer: Any) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    (tmp_path / "vlm-a_Toy.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.pkl", "--out", tmp_path / "out")
    assert run.code == 2
    assert "is a pickle" in run.err
    assert "tsv, json or parquet" in run.err


@pytest.mark.parametrize(("name", "arguments", "code"), [("other.tsv", (), 2), ("other.tsv", ("--vlm", "vlm-b"), 0)])
def test_vlm_is_named_by_the_file_or_the_option(
    name: str, arguments: tuple[str, ...], code: int, tmp_path: Path, dataset: Any, results: Any, run_importer: Any
) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    _write_tsv(tmp_path / name, results)
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / name, "--out", tmp_path / "out", *arguments)
    assert run.code == code
    assert ("name the VLM with --vlm" in run.err) == (code == 2)


def test_result_without_its_columns_is_refused(tmp_path: Path, dataset: Any, run_importer: Any) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    _write_tsv(tmp_path / "vlm-a_Toy.tsv", [{"index": 1, "response": "B"}])
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.tsv", "--out", tmp_path / "out")
    assert run.code == 1
    assert "column prediction is missing" in run.err


def test_truncated_files_are_refused(
    tmp_path: Path, dataset: Any, results: Any, run_importer: Any, write_xlsx: Any
) -> None:
    _write_tsv(tmp_path / "Whole.tsv", dataset)
    whole = (tmp_path / "Whole.tsv").read_bytes()
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    write_xlsx(tmp_path / "vlm-a_Toy.xlsx", results)
    content = (tmp_path / "vlm-a_Toy.xlsx").read_bytes()
    (tmp_path / "vlm-a_Toy.xlsx").write_bytes(content[: len(content) // 2])
    run = run_importer(main, tmp_path / "Toy.tsv", tmp_path / "vlm-a_Toy.xlsx", "--out", tmp_path / "out")
    assert (run.code, "no whole xlsx file" in run.err) == (1, True)
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "Toy.tsv").write_bytes(whole[: int(len(whole) * share)])
        run = run_importer(main, tmp_path / "Toy.tsv", "--out", tmp_path / "out")
        assert run.code == 1, share
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_wrongly_encoded_data_set_is_refused_with_the_cure(
    encoding: str, tmp_path: Path, dataset: Any, run_importer: Any
) -> None:
    dataset[0]["question"] = "Où est-elle?"
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    (tmp_path / "Toy.tsv").write_bytes((tmp_path / "Toy.tsv").read_text().encode(encoding))
    run = run_importer(main, tmp_path / "Toy.tsv", "--out", tmp_path / "out")
    assert run.code == 1
    assert "iconv" in run.err


def test_second_vlm_is_added_to_the_same_folder(tmp_path: Path, dataset: Any, results: Any, run_importer: Any) -> None:
    _write_tsv(tmp_path / "Toy.tsv", dataset)
    for vlm in ("vlm-a", "vlm-b"):
        _write_tsv(tmp_path / f"{vlm}_Toy.tsv", results)
        assert (
            run_importer(main, tmp_path / "Toy.tsv", tmp_path / f"{vlm}_Toy.tsv", "--out", tmp_path / "out").code == 0
        )
    assert recorded.read_queries(tmp_path / "out").height == 3
    assert recorded.read_outputs(tmp_path / "out")["vlm"].value_counts().sort("vlm").rows() == [
        ("vlm-a", 3),
        ("vlm-b", 3),
    ]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "example:\n  python -m tasks.importers.vlmevalkit" in capsys.readouterr().out
