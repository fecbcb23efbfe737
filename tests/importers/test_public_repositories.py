"""MATH-V, VisOnlyQA, DynaMath, BlindTest: small clones in the layout of their authors, with contents made up here."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from tasks.common import recorded
from tasks.importers import blindtest, dynamath, mathv, visonlyqa

if TYPE_CHECKING:
    from tests.conftest import MakeTree

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"mathv": mathv, "visonlyqa": visonlyqa, "dynamath": dynamath, "blindtest": blindtest}
Write = Callable[[Path], Path]


def _picture(place: Path, number: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(picture).rectangle([2, 2, 3 + number, 20], fill="navy")
    picture.save(place)
    return place


def _lines(place: Path, rows: list[dict[str, Any]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_mathv(clone: Path) -> Path:
    rows = [
        {"id": "1", "question": "How many bars?\n<image1>", "options": [], "answer": "3", "subject": "counting"},
        {"id": "2", "question": "Which?\n<image1>", "options": ["$x$", "", "both"], "answer": "C", "subject": "logic"},
    ]
    for row in rows:
        row |= {"image": f"images/{row['id']}.png", "level": 1, "solution": None}
        _picture(clone / str(row["image"]), int(str(row["id"])))
    _lines(clone / "data/test.jsonl", rows)
    answers = [
        {"id": "1", "model": "m", "response": "3", "model_answer": "3", "correct": True},
        {"id": "2", "model": "m", "response": "(A) $x$", "model_answer": "a", "correct": False},
    ]
    for name in ("closed/Qwen/Qwen-VL-Max", "closed/Qwen/Qwen-VL-Max-CoT", "open/Brand-New-9B", "Random-Chance",
                 "closed/GPT/GPT4-CoT (Text Only)"):  # fmt: skip
        _lines(clone / f"outputs/{name}.jsonl", answers)
    return clone


def write_visonlyqa(clone: Path) -> Path:
    def question(number: int, text: str, answer: str, options: list[str], **more: str) -> dict[str, Any]:
        image = f"images/Made/{number}.png"
        _picture(clone / "dataset/test" / image, number)
        return {
            "id": f"visonlyqa_{number:064x}"[:10] + f"{number:054x}"[::-1], "question": text, "answer": answer,
            "image_path": image, "response_options": options, "question_type": "single_answer", "source": "CharXiv",
            "prompt_reasoning": text + " Explain.", "prompt_no_reasoning": text + " Only the answer.",
        } | more  # fmt: skip

    tasks = {
        "real/charts__extraction": [
            question(1, "The value in May is\n(a) 5 (b) 7 years(c) 9 ", "b", ["a", "b", "c"], source="ChartQA")
        ],
        "real/chemistry__shape_multi": [
            question(2, "List all that are round from a, b.", "a,b", ["a", "b"], question_type="multiple_answers")
        ],
        "synthetic/3d__size": [
            question(3, "The cube is taller. True or False?", "True", ["True", "False"]),
            question(4, "The cube is red. True or False?", "False", ["True", "False"]),
        ],
    }
    for name, questions in tasks.items():
        _lines(clone / f"dataset/test/{name}.jsonl", questions)
        split, task = name.split("/")
        rows = [
            {"prompt": "<image>\n" + q["prompt_no_reasoning"], "response": f"({q['answer']})", "y_pred": q["answer"],
             "y_true": q["answer"]}
            for q in questions
        ]  # fmt: skip
        rows[0]["y_pred"] = "a"
        folder = clone / f"results/model_responses/eval_{split}/{task}/prompt=no_reasoning"
        for vlm in ("InternVL2-8B", "llava_next_yi_34b", f"InternVL2-8B_{task}_20250308_123856"):
            _lines(folder / f"{vlm}.jsonl", rows)
    return clone


def write_dynamath(clone: Path) -> Path:
    results = clone / "samples and result"
    for trial in (1, 2, 10):
        draws = {
            "1": {"question": f"How long is bar {trial}?", "answer": str(trial), "answer_type": "float"},
            "2": {"question": "Is it long? choice: (A) Yes (B) No", "answer": "B", "answer_type": "multiple choice"},
        }
        for number, draw in draws.items():
            draw |= {"image": f"image/image{number}.png", "subject": "plane geometry", "level": "high school"}
            width = trial if number == "1" else min(trial, 2)  # the tenth draw of question 2 repeats the second
            _picture(results / f"10trials/trial{trial}" / draw["image"], width)
        (results / f"10trials/trial{trial}/dataset.json").write_text(json.dumps(draws))
    columns = ["Question ID", *(f"Variant {n}" for n in range(1, 11)), "# of correct per question", "Topic"]
    verdicts = ["correct", "fail", *["fail"] * 7, "correct"]
    rows = [columns, ["Q1", *verdicts, "2", "plane geometry"], ["Q2", *verdicts, "2", "plane geometry"], ["Average"]]
    for name in ("GPT4o", "brand-new"):
        (results / f"{name}-result.csv").write_text(
            "".join(",".join([*row, *[""] * (13 - len(row))]) + "\n" for row in rows)
        )
    return clone


def write_blindtest(clone: Path) -> Path:
    source = clone / "src"
    for vlm in ("gemini-1.5", "gpt-4o", "sonnet-3", "sonnet-3.5"):
        verdict = "correct" if vlm == "gpt-4o" else "incorrect"
        copies = {
            f"LineIntersection/images/Count-prompt/{vlm}/{verdict}/x-count_gt_2_image_7_thickness_4.png": 1,
            f"LineIntersection/images/HowMany-prompt/{vlm}/{verdict}/x-how_gt_2_image_7_thickness_4.png": 1,
            f"TouchingCircle/images/{vlm}/touching-prompt/{verdict}/x_touch_pixels_384_distance_0.00.png": 2,
            f"TouchingCircle/images/{vlm}/overlapping-prompt/{verdict}/x_overlap_pixels_384_distance_0.00.png": 2,
            f"CircledWord/images/Word/{vlm}/Which letter is being circled/{verdict}/text_image_0a.png": 3,
            f"CircledWord/images/Word/{vlm}/Which letter is being circled/{verdict}/text_image_0b.png": 30,
            f"CountingCircles/images/circles/Count-prompt/{vlm}/{verdict}/x_count_1_numCircles_6_black_0.png": 4,
            f"CountingCircles/images/pentagons/Count-prompt/{vlm}/{verdict}/count_side_0.05_numCircles_7_black.png": 5,
            f"NestedSquares/images/count-prompt/{vlm}/{verdict}/nested_squares_depth_4_image_1_thickness_2.png": 6,
            f"CountingRowsAndColumns/images/CountRC-prompt/{vlm}/{verdict}/x_grid_8x9_500_10.png_blank.png": 7,
            f"CountingRowsAndColumns/images/CountRC-prompt/{vlm}/{verdict}/x_text_grid_3x4_500_10.png_text.png": 8,
            f"SubwayMap/images/Count-prompt/{vlm}/{verdict}/x_A_C_353020ed.png": 9,
            f"SubwayMap/images/Count-prompt/{vlm}/{verdict}/x_B_D_353020ed.png": 9,
        }
        for place, number in copies.items():
            _picture(source / place, number)
    _picture(source / "SubwayMap/images/Count-prompt/gpt-4o/incorrect/again_B_D_353020ed.png", 9)  # filed twice
    _picture(source / "NestedSquares/images/example_depth_4_count.png", 6)  # of no VLM
    return clone


def write_published(place: Path) -> Path:
    """The data set's file: pictures as the hub keeps them, here saved anew, so that only their pixels are the same."""
    rows = []
    for number, task, prompt, gold in (
        (3, "Circled Letter", "Which letter is being circled?", "e"),
        (9, "Subway Connections", "How many paths go from A to C? Answer like {3}", "{2}"),
        (9, "Subway Connections", "How many paths go from B to D? Answer like {3}", "1"),
        (1, "Line Plot Intersections", "How many?", "0"),
    ):
        content = io.BytesIO()
        Image.open(_picture(place.parent / "drawn.png", number)).save(content, "PNG", compress_level=0)
        picture = {"bytes": content.getvalue(), "path": "x.png"}
        rows.append({"image": picture, "task": task, "prompt": prompt, "groundtruth": gold, "metadata": "{}"})
    pl.DataFrame(rows).write_parquet(place)
    return place


WRITE: dict[str, Write] = {
    "mathv": write_mathv, "visonlyqa": write_visonlyqa, "dynamath": write_dynamath, "blindtest": write_blindtest,
}  # fmt: skip


def _run(name: str, clone: Path, tmp_path: Path, *options: str) -> int:
    return MODULES[name].main([str(clone), "--out", str(tmp_path / "recorded"), *options])


def _imported(name: str, tmp_path: Path, *options: str) -> tuple[dict[str, dict[str, Any]], pl.DataFrame]:
    """Queries by id, and outputs, of an import that must end well."""
    assert _run(name, WRITE[name](tmp_path / "clone"), tmp_path, *options) == 0
    folder = tmp_path / "recorded"
    queries = recorded.read_queries(folder)
    for image, sha256 in queries.select("image", "image_sha256").iter_rows():
        recorded.read_picture(folder, image, sha256=sha256, max_pixels=10_000)
    return {row["query_id"]: row for row in queries.iter_rows(named=True)}, recorded.read_outputs(folder)


def test_mathv_questions_get_their_options_as_lettered_lines(tmp_path: Path) -> None:
    queries, _ = _imported("mathv", tmp_path)
    assert set(queries) == {"mathv/1", "mathv/2"}
    free, choice = queries["mathv/1"], queries["mathv/2"]
    assert (free["question"], free["choices"], free["answer_type"]) == ("How many bars?\n<image1>", None, "free")
    assert choice["question"] == "Which?\n<image1>\nA. $x$\nB. B\nC. both"  # an empty option is its letter
    assert (choice["choices"], choice["answer"], choice["task"]) == (["$x$", "B", "both"], "C", "logic")


def test_mathv_takes_direct_runs_that_saw_the_picture(tmp_path: Path) -> None:
    _, outputs = _imported("mathv", tmp_path)
    assert set(outputs["vlm"]) == {"qwen-vl-max", "Brand-New-9B"}
    row = outputs.row(by_predicate=(pl.col("vlm") == "qwen-vl-max") & (pl.col("query_id") == "mathv/2"), named=True)
    assert (row["output"], row["imported_correct"]) == ("(A) $x$", False)


def test_mathv_takes_chain_of_thought_runs_instead_where_asked(tmp_path: Path) -> None:
    _, outputs = _imported("mathv", tmp_path, "--cot")
    assert outputs["vlm"].to_list() == ["qwen-vl-max"] * 2


def test_visonlyqa_options_in_the_question_become_lettered_lines(tmp_path: Path) -> None:
    queries, _ = _imported("visonlyqa", tmp_path)
    by_task = {(row["task"], row["answer"]): row for row in queries.values()}
    row = by_task["charts__extraction", "b"]
    assert row["question"] == "The value in May is\nA. 5\nB. 7 years\nC. 9"
    assert row["choices"] == ["5", "7 years", "9"]
    assert row["licence"] == "GPL-3.0 (figures: GPL-3.0)"
    several = by_task["chemistry__shape_multi", "a,b"]
    assert (several["answer_type"], several["choices"]) == ("free", ["a", "b"])
    assert several["licence"] == "GPL-3.0 (figures: Apache-2.0)"
    assert by_task["3d__size", "False"]["choices"] == ["True", "False"]


def test_visonlyqa_responses_follow_the_questions_order(tmp_path: Path) -> None:
    queries, outputs = _imported("visonlyqa", tmp_path)
    assert set(outputs["vlm"]) == {"internvl2-8b", "llava-next-yi-34b"}  # no run of one trained on the task
    sizes = [row["query_id"] for row in queries.values() if row["task"] == "3d__size"]
    rows = {(r["query_id"], r["vlm"]): r for r in outputs.iter_rows(named=True)}
    found = {queries[q]["answer"]: rows[q, "internvl2-8b"] for q in sizes}
    assert (found["True"]["output"], found["True"]["imported_correct"]) == ("(True)", False)
    assert (found["False"]["output"], found["False"]["imported_correct"]) == ("(False)", True)


@pytest.mark.parametrize("change", ["cut", "other gold", "other question"])
def test_visonlyqa_responses_to_other_questions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    clone = write_visonlyqa(tmp_path / "clone")
    path = clone / "results/model_responses/eval_synthetic/3d__size/prompt=no_reasoning/InternVL2-8B.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    _lines(
        path,
        {"cut": rows[:1], "other gold": [rows[0] | {"y_true": "False"}, rows[1]], "other question": rows[::-1]}[change],
    )
    assert _run("visonlyqa", clone, tmp_path) == 1
    text = capsys.readouterr().err
    assert ("1 lines, but the task has 2" if change == "cut" else "line 1: answers another question") in text
    assert not (tmp_path / "recorded").exists()


def test_dynamath_program_is_the_template_and_repeated_draws_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, outputs = _imported("dynamath", tmp_path)
    assert set(queries) == {"dynamath/1-1", "dynamath/1-2", "dynamath/1-10", "dynamath/2-1", "dynamath/2-2"}
    assert "1 queries: repeats the picture and question of an earlier draw" in capsys.readouterr().out
    assert {row["template"] for row in queries.values()} == {"dynamath/1", "dynamath/2"}
    choice = queries["dynamath/2-1"]
    assert (choice["choices"], choice["answer"], choice["task"]) == (["Yes", "No"], "B", "plane_geometry")
    assert outputs.height == 2 * 5
    assert outputs["output"].null_count() == outputs.height
    verdicts = dict(outputs.filter(vlm="gpt-4o-2024-08-06").select("query_id", "imported_correct").iter_rows())
    assert verdicts["dynamath/1-1"] and not verdicts["dynamath/1-2"] and verdicts["dynamath/1-10"]
    assert set(outputs["vlm"]) == {"gpt-4o-2024-08-06", "brand-new"}


@pytest.mark.parametrize(
    ("question", "answer", "choices"),
    [
        ("Is point (P) on it? (A) Yes (B) No", "B", None),  # the letters do not tell where the choices begin
        ("Is it? (A) Yes (B) No", "AB", None),
        ("Is it? (A) Yes (B)", "A", None),
        ("Is it? (A) Yes (B) No", "A", ["Yes", "No"]),
    ],
)
def test_dynamath_choices_are_taken_where_their_letters_are_clear(
    tmp_path: Path, question: str, answer: str, choices: list[str] | None
) -> None:
    clone = write_dynamath(tmp_path / "clone")
    path = clone / "samples and result/10trials/trial1/dataset.json"
    draws = json.loads(path.read_text())
    draws["2"] |= {"question": question, "answer": answer}
    path.write_text(json.dumps(draws))
    assert _run("dynamath", clone, tmp_path) == 0
    queries = recorded.read_queries(tmp_path / "recorded")
    assert queries.filter(query_id="dynamath/2-1").select("answer", "choices").row(0) == (answer, choices)


def test_blindtest_odd_file_names_are_faults_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_blindtest(tmp_path / "clone")
    _picture(clone / "src/TouchingCircle/images/gpt-4o/touching-prompt/correct/x_touch_distance_0..1.png", 20)
    assert _run("blindtest", clone, tmp_path) == 1
    assert "should tell its gold answer as" in capsys.readouterr().err


def test_published_data_set_may_have_columns_of_any_kind(tmp_path: Path) -> None:
    published = write_published(tmp_path / "valid.parquet")
    frame = pl.read_parquet(published)
    frame.with_columns(made=pl.lit("2024-01-01").str.to_date(), raw=pl.lit(b"x")).write_parquet(published)
    assert _run("blindtest", write_blindtest(tmp_path / "clone"), tmp_path, "--dataset", str(published)) == 0


def test_published_gold_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_published(tmp_path / "valid.parquet")
    frame = pl.read_parquet(published)
    frame.with_columns(groundtruth=pl.lit(b"x")).write_parquet(published)
    assert _run("blindtest", write_blindtest(tmp_path / "clone"), tmp_path, "--dataset", str(published)) == 1
    assert "row 1: Object of type bytes" in capsys.readouterr().err


def test_dynamath_verdict_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_dynamath(tmp_path / "clone")
    path = clone / "samples and result/GPT4o-result.csv"
    path.write_text(path.read_text().replace("Q2,correct", "Q2,perhaps"))
    assert _run("dynamath", clone, tmp_path) == 1
    assert "GPT4o-result.csv, Q2, Variant 1: expected correct or fail, got 'perhaps'" in capsys.readouterr().err


def test_blindtest_verdicts_stand_in_folders_and_golds_in_names(tmp_path: Path) -> None:
    queries, outputs = _imported("blindtest", tmp_path)
    golds = {row["task"]: row["answer"] for row in queries.values()}
    assert golds == {
        "line_intersection": "2", "two_circles_touching": "Yes", "two_circles_overlapping": "No",
        "counting_circles": "6", "counting_pentagons": "7", "nested_squares": "4", "grid_blank": "(8,9)",
        "grid_text": "(3,4)",
    }  # fmt: skip
    assert len(queries) == 8  # the copies for four VLMs are one query each
    assert outputs.height == 4 * 8
    right = set(outputs.filter("imported_correct")["vlm"])
    assert right == {"gpt-4o-2024-05-13"}
    assert set(outputs["vlm"]) == right | {
        "gemini-1.5-pro-001", "claude-3-sonnet-20240229", "claude-3-5-sonnet-20240620",
    }  # fmt: skip
    touching = next(row for row in queries.values() if row["task"] == "two_circles_touching")
    assert (touching["answer_type"], touching["choices"]) == ("choice", ["Yes", "No"])


def test_blindtest_letters_and_routes_come_with_the_published_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_published(tmp_path / "valid-00000-of-00001.parquet")
    queries, outputs = _imported("blindtest", tmp_path, "--dataset", str(published))
    assert len(queries) == 8 + 3
    letters = [row["answer"] for row in queries.values() if row["task"] == "circled_letter"]
    assert letters == ["e"]  # the other letter's picture is not in the data set
    assert "1 queries: the data set has no gold answer to its picture" in capsys.readouterr().out
    routes = {row["question"]: row for row in queries.values() if row["task"] == "subway_paths"}
    question = "Count the one-colored routes that go from {} to {}. Answer with a number in curly brackets, e.g., {{3}}"
    assert routes[question.format("A", "C")]["answer"] == "2"
    there = routes[question.format("B", "D")]
    assert there["answer"] == "1"
    vlms = set(outputs.filter(query_id=there["query_id"])["vlm"])
    assert "gpt-4o-2024-05-13" not in vlms  # filed as correct and as incorrect
    assert len(vlms) == 3


def test_vlms_are_named_as_in_the_preset_of_real_outputs() -> None:
    preset = YAML(typ="safe").load((ROOT / "presets/real.yaml").read_text())
    known = {vlm["name"] for vlm in preset["vlms"]}
    ours = {*mathv.VLMS.values(), *visonlyqa.VLMS.values(), *dynamath.VLMS.values()}
    assert ours <= known
    assert len(dynamath.VLMS) == 14
    assert len(mathv.VLMS) == 10


@pytest.mark.parametrize("name", WRITE)
def test_importing_twice_changes_nothing(tmp_path: Path, name: str) -> None:
    _, before = _imported(name, tmp_path)
    assert _run(name, tmp_path / "clone", tmp_path) == 0
    assert recorded.read_outputs(tmp_path / "recorded").equals(before)


@pytest.mark.parametrize("name", WRITE)
def test_archive_of_a_clone_is_read_like_the_clone(tmp_path: Path, name: str) -> None:
    _, before = _imported(name, tmp_path)
    with zipfile.ZipFile(tmp_path / "clone.zip", "w") as archive:
        for path in sorted((tmp_path / "clone").rglob("*")):
            archive.write(path, f"project-main/{path.relative_to(tmp_path / 'clone')}")
    shutil.rmtree(tmp_path / "recorded")
    assert _run(name, tmp_path / "clone.zip", tmp_path) == 0
    assert recorded.read_outputs(tmp_path / "recorded").equals(before)


@pytest.mark.parametrize("name", WRITE)
def test_archive_that_leads_outside_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "clone.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.txt"))
    assert _run(name, tmp_path / "clone.tar", tmp_path) == 1
    assert "leads out of its folder" in capsys.readouterr().err
    assert not (tmp_path.parent / "outside.txt").exists()


@pytest.mark.parametrize("name", WRITE)
def test_another_folder_than_the_clone_is_the_users_mistake(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    assert _run(name, tmp_path / "photos", tmp_path) == 2
    assert "is not the repository that this importer reads" in capsys.readouterr().err
    assert _run(name, tmp_path / "nowhere", tmp_path) == 2
    assert "there is no" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mathv", "visonlyqa", "dynamath"])
@pytest.mark.parametrize("image", ["../../secret.png", "/etc/passwd", "https://example.org/a.png"])
def test_picture_outside_the_clone_is_not_followed(
    tmp_path: Path, name: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = WRITE[name](tmp_path / "clone")
    _picture(tmp_path / "secret.png", 1)
    path, key = {
        "mathv": (clone / "data/test.jsonl", "images/1.png"),
        "visonlyqa": (clone / "dataset/test/real/charts__extraction.jsonl", "images/Made/1.png"),
        "dynamath": (clone / "samples and result/10trials/trial1/dataset.json", "image/image1.png"),
    }[name]
    path.write_text(path.read_text().replace(key, image))
    assert _run(name, clone, tmp_path) == 1
    text = capsys.readouterr().err
    assert "it is not followed" in text or "is a URL" in text
    assert not (tmp_path / "recorded").exists()


def test_blindtest_link_that_leads_outside_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_blindtest(tmp_path / "clone")
    link = clone / "src/NestedSquares/images/count-prompt/gpt-4o/correct/nested_squares_depth_5_image_1.png"
    link.symlink_to(_picture(tmp_path / "secret.png", 1))
    assert _run("blindtest", clone, tmp_path) == 1
    assert "leads out of" in capsys.readouterr().err


FILES = {
    "mathv": ["data/test.jsonl", "outputs/open/Brand-New-9B.jsonl"],
    "visonlyqa": [
        "dataset/test/real/charts__extraction.jsonl",
        "results/model_responses/eval_real/charts__extraction/prompt=no_reasoning/InternVL2-8B.jsonl",
    ],
    "dynamath": ["samples and result/10trials/trial1/dataset.json", "samples and result/GPT4o-result.csv"],
}
SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) * 2 // 3],
    "other encoding": lambda content: content.replace(b"e", "é".encode("latin-1")),
    "binary": lambda content: b"\x00\xff\xfe" + content,
    "a list of numbers": lambda content: b"[1, 2, 3]\n",
}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
@pytest.mark.parametrize("spoil", SPOILS)
def test_spoiled_file_is_refused_by_its_name_and_nothing_is_written(
    tmp_path: Path, name: str, file: str, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = WRITE[name](tmp_path / "clone")
    path = clone / file
    path.write_bytes(SPOILS[spoil](path.read_bytes()))
    assert _run(name, clone, tmp_path) == 1
    assert path.name in capsys.readouterr().err
    assert not (tmp_path / "recorded").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 1}, "data/test.jsonl, line 1: field 'id': input should be a valid string, got '1'"),
        ({"options": "A"}, "field 'options': input should be a valid array"),
        ({"answer": None}, "field 'answer': input should be a valid string"),
        ({"image": "images/9.png"}, "9.png is missing"),
    ],
)
def test_mistyped_field_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = write_mathv(tmp_path / "clone")
    path = clone / "data/test.jsonl"
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    _lines(path, [first | change, *rest])
    assert _run("mathv", clone, tmp_path) == 1
    assert words in capsys.readouterr().err


def test_missing_field_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_mathv(tmp_path / "clone")
    path = clone / "outputs/open/Brand-New-9B.jsonl"
    _lines(path, [{"response": "3", "correct": True}])
    assert _run("mathv", clone, tmp_path) == 1
    assert "Brand-New-9B.jsonl, line 1: field 'id' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_picture_that_is_none_is_named(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_mathv(tmp_path / "clone")
    (clone / "images/2.png").write_bytes(content)
    assert _run("mathv", clone, tmp_path) == 1
    assert "query mathv/2: picture" in capsys.readouterr().err


def test_published_data_set_must_be_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = write_blindtest(tmp_path / "clone")
    (tmp_path / "valid.pkl").write_bytes(b"\x80\x04N.")
    assert _run("blindtest", clone, tmp_path, "--dataset", str(tmp_path / "valid.pkl")) == 2
    assert "is no parquet file" in capsys.readouterr().err
    (tmp_path / "valid.parquet").write_bytes(b"PAR1 cut off")
    assert _run("blindtest", clone, tmp_path, "--dataset", str(tmp_path / "valid.parquet")) == 1
    assert "valid.parquet is no readable parquet file" in capsys.readouterr().err


@pytest.mark.parametrize("name", WRITE)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        MODULES[name].main(["--help"])
    assert caught.value.code == 0
    assert f"python -m tasks.importers.{name} ~/clones/" in capsys.readouterr().out


def test_all_four_come_into_one_folder_and_through_the_stages(tmp_path: Path, make_tree: MakeTree) -> None:
    for name, write in WRITE.items():
        assert _run(name, write(tmp_path / name), tmp_path / "imported") == 0
    folder = tmp_path / "imported/recorded"
    asked = recorded.read_outputs(folder).join(recorded.read_queries(folder), on="query_id")
    benchmarks = asked.group_by("vlm").agg(pl.col("benchmark").unique().sort()).sort("vlm")
    vlms = [
        {"name": name, "display_name": name, "provider": "Lab", "pool": "base", "benchmarks": its}
        for name, its in benchmarks.iter_rows()
    ]
    source = {"source": "recorded", "folder": str(folder)}
    tree = make_tree(queries=source, collect=source, vlms=vlms)
    for stage in ("queries", "collect", "label"):
        result = tree.stage(stage)
        assert result.returncode == 0, result.stderr
    assert set(tree.table("queries/queries")["benchmark"]) == {"MATH-Vision", "VisOnlyQA", "DynaMath", "BlindTest"}
    labels = tree.table("label/base")
    assert labels.height == recorded.read_outputs(folder).height
    ours = labels.join(recorded.read_outputs(folder), on=["query_id", "vlm"])
    judged = ours.filter(pl.col("query_id").str.starts_with("mathv/") & (pl.col("vlm") == "qwen-vl-max"))
    assert judged["correct"].to_list() == judged["imported_correct"].to_list()
