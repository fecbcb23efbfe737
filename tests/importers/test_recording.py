import hashlib
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError, StorageError
from tasks.common import recorded
from tasks.importers.recording import Answer, Query, recording, with_choices

QUERY = Query(
    query_id="toy/1", benchmark="toy", task="colour", language="en", question="Which colour?", answer="A",
    answer_type="choice", choices=["red", "green"],
)  # fmt: skip
ANSWER = Answer(query_id="toy/1", vlm="vlm-a", output="It is red.")


def _record(out: Path, query: Query, picture: bytes | Path, *answers: Answer) -> None:
    with recording(out) as taken:
        taken.add_query(query, picture)
        for answer in answers:
            taken.add_answer(answer)


def _content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and ends there."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (body, b"IDAT" + zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_folder_holds_what_was_taken(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), replace(ANSWER, latency_s=0.5, prompt_tokens=7))
    queries = recorded.read_queries(tmp_path / "out")
    sha256 = hashlib.sha256(picture(0)).hexdigest()
    assert queries.row(0, named=True) == {
        "query_id": "toy/1", "benchmark": "toy", "task": "colour", "language": "en", "question": "Which colour?",
        "choices": ["red", "green"], "answer": "A", "answer_type": "choice",
        "image": f"images/{sha256[:2]}/{sha256}.png", "image_sha256": sha256, "image_group": sha256, "template": sha256,
        "source_image_sha256": None, "licence": None,
    }  # fmt: skip
    assert (tmp_path / "out" / queries["image"][0]).read_bytes() == picture(0)
    outputs = recorded.read_outputs(tmp_path / "out")
    assert outputs.select("query_id", "vlm", "output", "latency_s", "prompt_tokens").rows() == [
        ("toy/1", "vlm-a", "It is red.", 0.5, 7)
    ]
    assert not list(tmp_path.glob(".*"))


def test_folder_without_answers_has_no_table_of_them(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0))
    assert not (tmp_path / "out/outputs.parquet").exists()


def test_same_import_twice_changes_nothing(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    before = _content(tmp_path / "out")
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    assert _content(tmp_path / "out") == before


def test_other_benchmarks_and_vlms_are_added(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    (tmp_path / "out/notes.txt").write_text("mine")
    other = replace(QUERY, query_id="other/1", benchmark="other")
    _record(tmp_path / "out", other, picture(1), replace(ANSWER, query_id="other/1"), replace(ANSWER, vlm="vlm-b"))
    assert recorded.read_queries(tmp_path / "out")["query_id"].to_list() == ["other/1", "toy/1"]
    assert recorded.read_outputs(tmp_path / "out").select("query_id", "vlm").rows() == [
        ("other/1", "vlm-a"), ("toy/1", "vlm-a"), ("toy/1", "vlm-b"),
    ]  # fmt: skip
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_folder_somebody_else_wrote_is_added_to(recorded: Any, picture: Callable[[int], bytes]) -> None:
    before, outputs = recorded.queries, recorded.outputs
    _record(recorded.folder, QUERY, picture(0), ANSWER)
    assert recorded.queries.height == before.height + 1
    assert recorded.outputs.height == outputs.height + 1
    assert set(recorded.queries["image"]) > set(before["image"])


@pytest.mark.parametrize(
    ("query", "answer", "number", "named"),
    [
        (replace(QUERY, question="Which shape?"), ANSWER, 0, "toy/1 (differs in question)"),
        (replace(QUERY, choices=["red", "blue"]), ANSWER, 0, "toy/1 (differs in choices)"),
        (QUERY, ANSWER, 1, "toy/1 (differs in image_sha256, image_group, template)"),
        (QUERY, replace(ANSWER, output="Green."), 0, "toy/1 of vlm-a (differs in output)"),
        (QUERY, replace(ANSWER, reference_correct=True), 0, "toy/1 of vlm-a (differs in reference_correct)"),
    ],
)
def test_key_with_other_content_is_refused_and_nothing_changes(
    query: Query, answer: Answer, number: int, named: str, tmp_path: Path, picture: Callable[[int], bytes]
) -> None:
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    before = _content(tmp_path / "out")
    with pytest.raises(DataError) as refusal:
        _record(tmp_path / "out", query, picture(number), answer)
    assert named in str(refusal.value)
    assert _content(tmp_path / "out") == before


def test_all_faults_are_named_at_once_and_nothing_is_written(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    bad_queries = {
        "answer is ''": replace(QUERY, answer=""),
        "task is None": replace(QUERY, task=None),
        "'C' is none of the 2 choices": replace(QUERY, answer="C"),
        "a choice is empty": replace(QUERY, choices=["red", " "]),
        "answer_type is 'number'": replace(QUERY, answer_type="number"),
    }
    bad_answers = {
        "vlm is ''": replace(ANSWER, vlm=""),
        "output is int": replace(ANSWER, output=5),
        "reference_correct is 1,": replace(ANSWER, reference_correct=1),
        "latency_s is -1.0": replace(ANSWER, latency_s=-1.0),
        "cost_usd is nan": replace(ANSWER, cost_usd=float("nan")),
        "prompt_tokens is 1.5": replace(ANSWER, prompt_tokens=1.5),
        "neither an output nor": replace(ANSWER, output=None),
        "an error, but called right": replace(ANSWER, error="time-out", reference_correct=True),
    }
    with pytest.raises(DataError) as refusal, recording(tmp_path / "out") as taken:
        for query in bad_queries.values():
            taken.add_query(query, picture(0))
        for answer in bad_answers.values():
            taken.add_answer(answer)
    missing = [text for text in (*bad_queries, *bad_answers) if text not in str(refusal.value)]
    assert not missing
    assert "13 faults" in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a", "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
        (_png_header(60_000, 60_000), "60000 x 60000 px"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_picture_that_cannot_be_used_is_a_fault(content: bytes, message: str, as_file: bool, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        _record(tmp_path / "out", QUERY, tmp_path / "picture.png" if as_file else content)
    assert ("picture.png" if as_file else "picture toy/1") in str(refusal.value)
    assert ".tmp/" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_missing_picture_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        _record(tmp_path / "out", QUERY, tmp_path / "nothing.png")


def test_reading_stops_after_very_many_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1000 faults.*The rest was not read"), recording(tmp_path / "out") as taken:
        for number in range(5000):
            taken.fault(f"row {number}")


def test_answer_to_an_unknown_query_is_refused_by_name(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    with pytest.raises(DataError, match="'toy/2', 'vlm-a'"):
        _record(tmp_path / "out", QUERY, picture(0), replace(ANSWER, query_id="toy/2"))
    assert not (tmp_path / "out").exists()


def test_answers_to_queries_left_out_are_left_out(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    with recording(tmp_path / "out") as taken:
        taken.add_answer(replace(ANSWER, query_id="toy/2"))
        taken.leave_out("toy/2", "no picture")
        taken.add_query(QUERY, picture(0))
    assert taken.left_out == {"toy/2": "no picture"}
    assert not (tmp_path / "out/outputs.parquet").exists()


def test_half_a_surrogate_pair_does_not_stop_an_import(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), replace(ANSWER, output="cut \ud83d off, whole \ud83d\ude00"))
    assert recorded.read_outputs(tmp_path / "out")["output"][0] == "cut � off, whole \U0001f600"


def test_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"), recording(tmp_path):
        pass
    with pytest.raises(ConfigError, match="is a file"), recording(tmp_path / "thesis.txt"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_empty_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no query was found .*1 no picture"), recording(tmp_path / "out") as taken:
        taken.leave_out("toy/1", "no picture")


def test_change_by_another_program_meanwhile_is_refused(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    other = replace(QUERY, query_id="toy/2")
    with pytest.raises(StorageError, match="another program"), recording(tmp_path / "out") as taken:
        taken.add_query(replace(QUERY, query_id="toy/3"), picture(0))
        _record(tmp_path / "out", other, picture(0))
    assert recorded.read_queries(tmp_path / "out")["query_id"].to_list() == ["toy/1", "toy/2"]


def test_pictures_are_shared_with_the_old_folder_and_never_written_into(
    tmp_path: Path, picture: Callable[[int], bytes]
) -> None:
    _record(tmp_path / "out", QUERY, picture(0))
    image = tmp_path / "out" / recorded.read_queries(tmp_path / "out")["image"][0]
    inode = image.stat().st_ino
    _record(tmp_path / "out", replace(QUERY, query_id="toy/2"), picture(1))
    assert image.stat().st_ino == inode


def test_full_disk_leaves_the_folder_as_it_was(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    _record(tmp_path / "out", QUERY, picture(0), ANSWER)
    before = _content(tmp_path / "out")
    script = (
        "import random, resource, signal, sys\nfrom pathlib import Path\n"
        "from tasks.importers.command import make_parser, run_importer\n"
        "from tasks.importers.recording import Answer, Query\n"
        "def body(options, taken):\n"
        f"    taken.add_query({QUERY!r}, Path(sys.argv[2]))\n"
        "    for n in range(2000):\n"
        "        taken.add_answer(Answer(query_id='toy/1', vlm=f'vlm-{n}', output=random.randbytes(99).hex()))\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "parser = make_parser('toy', description='', example='')\n"
        "sys.exit(run_importer('toy', parser, body, ['--out', sys.argv[1]]))\n"
    )
    (tmp_path / "picture.png").write_bytes(picture(0))
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "picture.png")],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "could not write" in result.stderr
    assert "Traceback" not in result.stderr
    assert _content(tmp_path / "out") == before
    assert not list(tmp_path.glob(".out*"))


def test_many_rows_keep_their_order_and_number(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    with recording(tmp_path / "out") as taken:
        shared = taken.store_picture(picture(0), name="shared")
        for number in range(45_000):  # more than two chunks
            taken.add_query(replace(QUERY, query_id=f"toy/{number:05d}"), shared)
    ids = pl.read_parquet(tmp_path / "out/queries.parquet")["query_id"]
    assert ids.to_list() == [f"toy/{number:05d}" for number in range(45_000)]


@pytest.mark.parametrize(
    ("question", "choices", "expected"),
    [
        ("Which?", ["red", "green"], "Which?\nA. red\nB. green"),
        ("Is it red or green?", ["red", "green"], "Is it red or green?\nA. red\nB. green"),
        ("How many were there in 2013?", ["1", "2", "3"], "How many were there in 2013?\nA. 1\nB. 2\nC. 3"),
        ("Which? (A) red (B) green", ["red", "green"], "Which? (A) red (B) green"),
        ("Which? A. 10 B. 20", ["1", "2"], "Which? A. 10 B. 20\nA. 1\nB. 2"),
        ("Which?\na) 1+1\nb) 2", ["1+1", "2"], "Which?\na) 1+1\nb) 2"),
        ("How many?", None, "How many?"),
    ],
)
def test_choices_are_written_below_the_question_once(question: str, choices: list[str] | None, expected: str) -> None:
    assert with_choices(question, choices) == expected
    assert with_choices(expected, choices) == expected
