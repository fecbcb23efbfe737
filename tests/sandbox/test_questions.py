"""The sandbox's query set: the same from the same seed, as many and varied as promised, its answers labelled right."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from sandbox.pictures import FONTS, SCENES, font
from sandbox.questions import query_set
from sandbox.vocabulary import COLOURS, FORMS, LANGUAGES, PRINTED_WORDS, SHAPES, SIDES, WORDINGS
from tasks.common.normalise import judge
from tasks.common.recorded import read_picture, read_queries


@pytest.fixture(scope="module")
def queries() -> pl.DataFrame:
    rows, _ = query_set(seed=0, num_queries=1000)
    return pl.DataFrame(rows, schema_overrides={"source_image_sha256": pl.String})


def _write(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox.questions", "--out", str(folder), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def _sha256(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    for name, hash_seed in (("a", "1"), ("b", "2")):
        result = _write(tmp_path / name, "--seed", "4", "--num-queries", "70", PYTHONHASHSEED=hash_seed)
        assert result.returncode == 0, result.stderr
    assert len(_sha256(tmp_path / "a")) == 36
    assert _sha256(tmp_path / "a") == _sha256(tmp_path / "b")


def test_written_folder_is_a_recorded_query_set(tmp_path: Path) -> None:
    assert _write(tmp_path, "--num-queries", "15").returncode == 0
    frame = read_queries(tmp_path)
    assert frame.height == 15
    for image, sha256 in frame.select("image", "image_sha256").iter_rows():
        assert read_picture(tmp_path, image, sha256=sha256, max_pixels=50_000)


def test_more_queries_begin_with_the_fewer() -> None:
    few, few_images = query_set(seed=0, num_queries=41)
    many, many_images = query_set(seed=0, num_queries=60)
    assert many[:41] == few
    assert few_images.items() <= many_images.items()


def test_another_seed_gives_other_pictures() -> None:
    assert not set(query_set(seed=0, num_queries=14)[1].values()) & set(query_set(seed=1, num_queries=14)[1].values())


def test_about_a_thousand_queries_of_seven_benchmarks_in_three_languages(queries: pl.DataFrame) -> None:
    assert queries["query_id"].n_unique() == 1000
    assert set(queries["benchmark"]) == set(SCENES)
    assert len(SCENES) == 7
    assert queries["benchmark"].value_counts()["count"].min() > 100  # type: ignore[operator]
    assert set(queries["language"]) == set(LANGUAGES)
    assert queries["language"].value_counts()["count"].min() > 150  # type: ignore[operator]
    assert queries["answer_type"].value_counts()["count"].min() > 250  # type: ignore[operator]
    assert queries["image_group"].n_unique() == 500
    assert (queries.group_by("image_group").agg(pl.col("image").n_unique())["image"] == 1).all()


def test_every_task_has_several_wordings_or_several_languages_and_is_asked(queries: pl.DataFrame) -> None:
    assert set(queries["task"]) == set(WORDINGS)
    assert all(set(wordings) == set(LANGUAGES) for wordings in WORDINGS.values())
    assert queries["template"].n_unique() > 100


def test_choices_stand_in_the_question_and_hold_the_answer_once(queries: pl.DataFrame) -> None:
    for row in queries.filter(pl.col("answer_type") == "choice").iter_rows(named=True):
        assert len(set(row["choices"])) == len(row["choices"]) >= 2
        assert row["question"].count("\n") == len(row["choices"])
        place = "ABCD".index(row["answer"])
        assert f"\n{row['answer']}. {row['choices'][place]}" in row["question"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_gold_answer_is_labelled_right_however_it_is_said(queries: pl.DataFrame, language: str) -> None:
    for row in queries.filter(pl.col("language") == language).iter_rows(named=True):
        text = row["choices"]["ABCD".index(row["answer"])] if row["choices"] else row["answer"]
        ways = [row["answer"], text, f"The answer is {text}.", f"Answer: {text}", text.upper()]
        ways += [f"({row['answer']})", f"{row['answer']}. {text}"] if row["choices"] else []
        gold = {key: row[key] for key in ("answer", "answer_type", "choices", "language")}
        wrong = [said for said in ways if not judge(said, **gold).correct]
        assert not wrong, (row["question"], row["answer"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_answers_of_the_same_task_are_labelled_wrong(queries: pl.DataFrame, language: str) -> None:
    free = queries.filter((pl.col("language") == language) & (pl.col("answer_type") == "free"))
    for (_,), rows in free.group_by("task"):
        answers = rows["answer"].unique().sort().to_list()
        for answer in answers:
            others = [other for other in answers if other != answer]
            taken = [o for o in others if judge(o, answer=answer, answer_type="free", language=language).correct]
            assert not taken, answer


@pytest.mark.parametrize("name", sorted(set(FONTS)))
def test_fonts_carry_every_letter_that_is_printed(name: str) -> None:
    face = font(name, 22)
    missing = bytes(face.getmask("\uffff"))
    letters = set("".join(PRINTED_WORDS.values())) - {" "} | set("0123456789+-×")
    assert not [letter for letter in letters if bytes(face.getmask(letter)) == missing]


def test_words_know_every_colour_shape_and_side_in_every_language() -> None:
    keys = {slot: set(SHAPES) for slot in ("subject", "several", "of")} | {slot: set(SIDES) for slot in ("side", "far")}
    keys |= {"answer": {*COLOURS, *SHAPES, "yes", "no"}, "colour": set(COLOURS)}
    assert {slot: set(forms) for slot, forms in FORMS.items()} == {slot: set(LANGUAGES) for slot in keys}
    for slot, by_language in FORMS.items():
        for forms in by_language.values():
            assert set(forms) == keys[slot]
            assert len(set(forms.values())) == len(forms)


@pytest.mark.parametrize("arguments", [("--num-queries", "0"), ("--seed", "x")])
def test_bad_arguments_end_with_2_and_no_traceback(tmp_path: Path, arguments: tuple[str, str]) -> None:
    result = _write(tmp_path / "never", *arguments)
    assert result.returncode == 2
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "never").exists()
