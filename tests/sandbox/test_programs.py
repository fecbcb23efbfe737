"""The sandbox's VLMs: each really right on its skill, really wrong elsewhere, and never told the answer."""

from __future__ import annotations

import inspect
import io
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grimp
import polars as pl
import pytest
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from sandbox import ocr
from sandbox.pictures import draw_shape, font
from sandbox.programs import PROGRAMS
from sandbox.questions import query_set
from sandbox.understanding import understand
from sandbox.vocabulary import COLOURS, LANGUAGES
from tasks.common.normalise import judge

ROOT = Path(__file__).resolve().parents[2]
BASE = ("glyph-reader", "blob-counter", "palette-reader", "generalist-small")
NUM_QUERIES = 350
Draw = Callable[[ImageDraw.ImageDraw], None]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.DataFrame]:
    """What every program answered to a small query set, and whether it is right."""
    rows, images = query_set(seed=5, num_queries=NUM_QUERIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sandbox"))  # where the OCR text is kept
        yield pl.DataFrame(
            [
                {"vlm": name, "output": output, "correct": judge(output, **_gold(row)).correct}
                | {key: row[key] for key in ("query_id", "benchmark", "task", "language", "answer_type")}
                for name, program in PROGRAMS.items()
                for row in rows
                for output in [program(images[row["image"]], row["question"])]
            ]
        )


def _gold(row: dict[str, str]) -> dict[str, str]:
    return {key: row[key] for key in ("answer", "answer_type", "choices", "language")}


def _share(answers: pl.DataFrame, vlm: str, *where: pl.Expr) -> float:
    return answers.filter(pl.col("vlm") == vlm, *where)["correct"].mean()  # type: ignore[return-value]


def _picture(draw: Draw, background: str = "white") -> bytes:
    image = Image.new("RGB", (224, 160), background)
    draw(ImageDraw.Draw(image))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _three_circles_and_a_square(pen: ImageDraw.ImageDraw) -> None:
    for x, colour in ((40, "red"), (90, "red"), (140, "blue")):
        draw_shape(pen, "circle", x, 60, 24, COLOURS[colour])
    draw_shape(pen, "square", 180, 120, 24, COLOURS["red"])


def _twenty_to_four(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse([40, 10, 180, 150], outline="black", width=3)
    pen.line([110, 80, 110 + 33, 80 + 12], fill="black", width=4)  # 110 degrees
    pen.line([110, 80, 110 - 48, 80 + 28], fill="black", width=2)  # 240 degrees


def _three_bars(pen: ImageDraw.ImageDraw) -> None:
    for place, height in enumerate((40, 90, 60)):
        pen.rectangle([30 + 60 * place, 140 - height, 60 + 60 * place, 140], fill="green")
    pen.line([16, 140, 216, 140], fill="black", width=2)


def _word_and_number(pen: ImageDraw.ImageDraw) -> None:
    pen.text((30, 25), "garden", font=font("DejaVuSans", 30), fill="black")
    pen.text((30, 95), "4071", font=font("DejaVuSans", 30), fill="black")


@pytest.mark.parametrize(
    ("vlm", "draw", "question", "answer"),
    [
        ("blob-counter", _three_circles_and_a_square, "How many shapes are there?", "4"),
        ("blob-counter", _three_circles_and_a_square, "Wie viele Kreise sind zu sehen?", "3"),
        ("scene-analyst", _three_circles_and_a_square, "Сколько фигур красного цвета?", "The answer is 3."),
        ("scene-analyst", _three_circles_and_a_square, "What colour is the square?", "The answer is red."),
        ("scene-analyst", _three_circles_and_a_square, "Which shape is lowest down?", "The answer is square."),
        ("palette-reader", _three_circles_and_a_square, "Wie viele Formen sind blau?", "The answer is 1."),
        ("gauge-reader", _twenty_to_four, "What time does the clock show?\nA. 8:18\nB. 3:40", "B"),
        ("gauge-reader", _twenty_to_four, "Который час на часах?", "3:40"),
        ("gauge-reader", _three_bars, "Which bar is the highest?", "2"),
        ("generalist-small", _three_bars, "Ist Säule 3 höher als Säule 2?", "Answer: nein"),
        ("glyph-reader", _word_and_number, "Which word is printed in the picture?", "garden"),
        ("glyph-reader", _word_and_number, "Welche Zahl ist gedruckt?", "4071"),
        ("ocr-reader", _word_and_number, "Read the word in the image.", "garden"),
        ("ocr-reader", _word_and_number, "Read the printed number.\nA. 4017\nB. 4071", "The answer is B."),
    ],
)
def test_skill_is_right_on_a_clear_picture(
    vlm: str, draw: Draw, question: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert PROGRAMS[vlm](_picture(draw), question) == answer


@pytest.mark.parametrize(
    ("vlm", "benchmark", "at_least"),
    [
        ("glyph-reader", "reading", 0.35),
        ("blob-counter", "spatial", 0.6),
        ("palette-reader", "colours", 0.6),
        ("generalist-small", "counting", 0.45),
        ("ocr-reader", "reading", 0.6),
        ("gauge-reader", "clocks", 0.5),
        ("scene-analyst", "colours", 0.55),
    ],
)
def test_program_is_right_where_its_skill_is_asked(
    answers: pl.DataFrame, vlm: str, benchmark: str, at_least: float
) -> None:
    assert _share(answers, vlm, pl.col("benchmark") == benchmark) > at_least


@pytest.mark.parametrize(
    ("vlm", "tasks"),
    [
        ("glyph-reader", ["count", "count of shape", "colour of ground", "time"]),
        ("blob-counter", ["word", "number", "time", "colour of shape"]),
        ("palette-reader", ["word", "number", "time", "dots together"]),
        ("ocr-reader", ["count", "count of colour", "time", "colour of shape"]),
        ("gauge-reader", ["word", "number", "count of colour", "dots together"]),
        ("scene-analyst", ["word", "number", "time", "value of bar"]),
    ],
)
def test_program_is_wrong_where_it_has_no_skill(answers: pl.DataFrame, vlm: str, tasks: list[str]) -> None:
    free = (pl.col("task").is_in(tasks), pl.col("answer_type") == "free")
    assert _share(answers, vlm, *free) < 0.2


@pytest.mark.parametrize(
    ("vlm", "tasks", "known", "unknown"),
    [
        ("blob-counter", ["beside", "farthest", "count"], "en", "ru"),
        ("ocr-reader", ["word", "number"], "de", "ru"),
        ("gauge-reader", ["time", "highest bar", "lowest bar"], "ru", "de"),
        ("scene-analyst", ["count of colour", "colour of ground", "farthest"], "ru", "de"),
    ],
)
def test_language_that_a_program_was_not_written_for_is_a_real_gap(
    answers: pl.DataFrame, vlm: str, tasks: list[str], known: str, unknown: str
) -> None:
    asked = pl.col("task").is_in(tasks)
    shares = [_share(answers, vlm, asked, pl.col("language") == language) for language in (known, unknown)]
    assert shares[0] > shares[1] + 0.3


def test_different_programs_win_and_the_best_is_far_below_the_oracle(answers: pl.DataFrame) -> None:
    table = answers.group_by("benchmark", "vlm").agg(pl.col("correct").mean()).sort("correct")
    winners = table.group_by("benchmark").agg(pl.col("vlm").last())["vlm"]
    assert winners.n_unique() >= 4
    best = answers.group_by("vlm").agg(pl.col("correct").mean())["correct"].max()
    oracle = answers.group_by("query_id").agg(pl.col("correct").max())["correct"].mean()
    assert oracle - best > 0.25  # type: ignore[operator]


def test_new_programs_answer_what_no_base_program_can(answers: pl.DataFrame) -> None:
    base = answers.filter(pl.col("vlm").is_in(BASE)).group_by("query_id").agg(pl.col("correct").max())
    everyone = answers.group_by("query_id").agg(pl.col("correct").max())
    assert everyone["correct"].mean() - base["correct"].mean() > 0.08  # type: ignore[operator]


def test_program_gets_picture_and_question_and_nothing_of_what_made_them() -> None:
    for program in PROGRAMS.values():
        assert list(inspect.signature(program).parameters) == ["picture", "question"]
    graph = grimp.build_graph("sandbox")
    assert "sandbox.questions" not in graph.find_upstream_modules("sandbox.programs")


def test_every_question_of_the_set_is_understood() -> None:
    rows, _ = query_set(seed=2, num_queries=700)
    counts = {"count of shape": "count", "count of colour": "count"}
    for row in rows:
        asked = understand(row["question"])
        found = (asked.task, asked.language, list(asked.choices.values()))
        assert found == (counts.get(row["task"], row["task"]), row["language"], row["choices"] or []), row["question"]


@pytest.mark.parametrize(
    "question", ["", "?", "Tell me a story.", "A. x", "Сколько?", "Wie?", "bar 9 value", "1" * 5000]
)
@pytest.mark.parametrize("vlm", PROGRAMS)
def test_any_question_gets_some_answer(
    vlm: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert PROGRAMS[vlm](_picture(_word_and_number), question)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (1500, 900)])
@pytest.mark.parametrize("question", ["How many dots are on both sides together?", "Read the clock.", "Read the word."])
@pytest.mark.parametrize("vlm", PROGRAMS)
def test_any_picture_gets_some_answer(
    vlm: str, size: tuple[int, int], question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    Image.new("RGB", size, "navy").save(stream, "PNG")
    assert PROGRAMS[vlm](stream.getvalue(), question)


@pytest.mark.parametrize("content", [b"", b"no picture", _picture(_three_bars)[:300]], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize("vlm", PROGRAMS)
def test_file_that_is_no_picture_is_refused(vlm: str, content: bytes) -> None:
    with pytest.raises(ValueError, match="no picture that can be read"):
        PROGRAMS[vlm](content, "Read the clock.")


def test_answers_are_the_same_from_many_threads_at_once(answers: pl.DataFrame) -> None:
    rows, images = query_set(seed=5, num_queries=70)
    pairs = [(name, row) for row in rows for name in PROGRAMS]

    def ask(pair: tuple[str, dict[str, str]]) -> str:
        name, row = pair
        return PROGRAMS[name](images[row["image"]], row["question"])

    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(ask, pairs))
    known = {(row["vlm"], row["query_id"]): row["output"] for row in answers.iter_rows(named=True)}
    assert again == [known[name, row["query_id"]] for name, row in pairs]


def test_ocr_text_is_kept_by_picture_and_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ocr.read_text.cache_clear()
    picture = _picture(_word_and_number)
    assert [text for text, _, _ in ocr.read_text(picture)] == ["garden", "4071"]
    with sqlite3.connect(ocr.STORE) as connection:
        connection.execute("UPDATE texts SET tokens = ?", ('[["kept", 1.0, 2.0]]',))
    connection.close()
    ocr.read_text.cache_clear()
    assert ocr.read_text(picture) == [("kept", 1.0, 2.0)]
    ocr.read_text.cache_clear()


def test_params_ask_every_program_and_say_its_languages_as_they_are() -> None:
    names = {"en": "English", "de": "German", "ru": "Russian"}
    blocks = {block["name"]: block for block in YAML(typ="safe").load((ROOT / "params.yaml").read_text())["vlms"]}
    assert {block["endpoint"]["model"] for block in blocks.values()} == set(PROGRAMS)
    assert {name for name, block in blocks.items() if block["pool"] == "base"} == set(BASE)
    for name, program in PROGRAMS.items():
        said = {code for code in LANGUAGES if names[code] in blocks[name]["language_model"]}
        assert said == set(program.languages)
        assert 0.005 <= program.latency_s <= 0.06
