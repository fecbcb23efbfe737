from __future__ import annotations

import io
import textwrap
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from tasks.common import recorded
from tasks.importers.table import main

MAPPING = """
queries:
  file: data/questions.parquet
  columns: {query_id: id, question: prompt, answer: gold, image: picture}
  constants: {benchmark: mine, task: reading, language: en, answer_type: free}
collect: {file: data/answers.csv, columns: {query_id: id, vlm: model, output: response, latency_s: s}}
"""


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    """A mapping and its two tables, which lie beside it and not where the command runs."""
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    content = io.BytesIO()
    Image.new("RGB", (9, 9), "olive").save(content, "PNG")
    rows = [{"id": f"mine/{n}", "prompt": "What?", "gold": str(n), "picture": content.getvalue()} for n in (1, 2)]
    pl.DataFrame(rows).write_parquet(folder / "data/questions.parquet")
    (folder / "data/answers.csv").write_text("id,model,response,s\nmine/1,m-1b,1,0.5\nmine/2,m-1b,one,\n")
    (folder / "mapping.yaml").write_text(MAPPING)
    return folder / "mapping.yaml"


def test_tables_come_into_a_recorded_folder(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "recorded"
    assert main([str(mapping), "--out", str(out), "--licence", "CC0-1.0"]) == 0
    queries = recorded.read_queries(out)
    assert queries.select("query_id", "licence").rows() == [("mine/1", "CC0-1.0"), ("mine/2", "CC0-1.0")]
    assert queries["image"].n_unique() == 1
    outputs = recorded.read_outputs(out)
    assert outputs.select("query_id", "output", "latency_s").rows() == [("mine/1", "1", 0.5), ("mine/2", "one", None)]


def test_answers_may_be_added_to_a_folder_that_has_the_queries(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "recorded"
    text = mapping.read_text()
    mapping.write_text(text.split("collect:")[0])
    assert main([str(mapping), "--out", str(out)]) == 0
    assert not (out / recorded.OUTPUTS).exists()
    mapping.write_text("collect:" + text.split("collect:")[1])
    assert main([str(mapping), "--out", str(out)]) == 0
    assert recorded.read_outputs(out).height == 2


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("queries: [", 2, "is no valid YAML"),
        ("{}", 2, "name queries, collect, or both"),
        ("querys: {}", 2, "mapping.yaml.querys: unknown key; did you mean 'queries'?"),
        ("collect: {file: none.csv, columns: {query_id: id, vlm: m, output: o}}", 2, "yaml: collect.file names"),
        ("collect: {file: data/answers.csv, columns: {query_id: id, vlm: model, latency_s: s, output: response}, "
         "constants: {prompt_tokens: many}}", 1, "should hold prompt_tokens as Int64"),
    ],
)  # fmt: skip
def test_mapping_that_cannot_be_is_refused(
    mapping: Path, tmp_path: Path, text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping.write_text(text)
    assert main([str(mapping), "--out", str(tmp_path / "recorded")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "recorded").exists()


def test_missing_mapping_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.yaml"), "--out", str(tmp_path / "recorded")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_choices_are_written_into_the_question_and_pictures_at_fault_are_named(
    mapping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "1", "prompt": "Which?", "gold": "B", "a": "x", "b": "y", "picture": "one.png"}]
    pl.DataFrame(rows).write_csv(mapping.parent / "data/rows.csv")
    Image.new("RGB", (9, 9), "olive").save(mapping.parent / "data/one.png")
    mapping.write_text(
        "queries:\n  file: data/rows.csv\n  images: data\n  columns: {query_id: id, question: prompt, answer: gold, "
        "image: picture, choices: [a, b]}\n"
        "  constants: {benchmark: mine, task: reading, language: en, answer_type: choice}\n"
    )
    assert main([str(mapping), "--out", str(tmp_path / "recorded")]) == 0
    assert recorded.read_queries(tmp_path / "recorded")["question"].to_list() == ["Which?\nA. x\nB. y"]
    pl.DataFrame([*rows, rows[0] | {"id": "2", "picture": "two.png"}]).write_csv(mapping.parent / "data/rows.csv")
    assert main([str(mapping), "--out", str(tmp_path / "other")]) == 1
    assert "query 2: " in (text := capsys.readouterr().err)
    assert "two.png is missing" in text


def test_help_shows_a_mapping_that_works_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    command, text = capsys.readouterr().out.partition("example:\n  ")[2].split("\n\nmapping.yaml:\n")
    (tmp_path / "mapping.yaml").write_text(textwrap.dedent(text))
    (tmp_path / "questions.csv").write_text("id,prompt,gold,a,b,c,picture\n1,Which?,B,x,y,z,one.png\n")
    (tmp_path / "answers.csv").write_text("id,model,response\n1,m-1b,B\n")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9), "olive").save(tmp_path / "pictures/one.png")
    monkeypatch.chdir(tmp_path)
    assert main(command.removeprefix("python -m tasks.importers.table ").split()) == 0
    query = recorded.read_queries(tmp_path / "recorded").row(0, named=True)
    assert (query["choices"], query["answer"], query["language"]) == (["x", "y", "z"], "B", "en")
    assert recorded.read_outputs(tmp_path / "recorded")["output"].to_list() == ["B"]
