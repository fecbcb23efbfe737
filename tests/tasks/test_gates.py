"""Every invariant, broken alone: exactly it fails, by name, and the failing rows are kept."""

import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from arms_model.errors import ConfigError, DataError
from tasks.common.files import write_json
from tasks.common.gates import Check, Finding, Findings, Invariant, hold, not_empty, same, table_view, within
from tasks.common.invariants import collect, embed, label, profiles, queries, split, training
from tasks.common.tables import SCHEMAS
from tasks.common.vlms import Vlm, parse_vlms

NUM = 8  # queries, two of a group; a group per split
STAGES = {
    "queries": queries, "profiles": profiles, "collect": collect, "label": label, "split": split, "embed": embed,
    "train_base": training,
}  # fmt: skip
INVARIANTS = {invariant.name: invariant for module in STAGES.values() for invariant in module.INVARIANTS}
IDS = [f"q{number}" for number in range(NUM)]


class World:
    """A sound output of every stage, small enough to spoil by hand; the current folder holds its files."""

    def __init__(self) -> None:
        self.images, self.sealed = Path("images"), Path("sealed")
        self.images.mkdir()
        self.sealed.mkdir()
        for query_id in IDS:
            (self.images / f"{query_id}.png").write_bytes(query_id.encode())
        self.queries = pl.DataFrame([self._query(number) for number in range(NUM)], schema=SCHEMAS["queries"])
        self.vlms = parse_vlms([self._block("a", "base"), self._block("b", "new")])
        self.profiles = {vlm.pool: pl.DataFrame([self._profile(vlm)], schema=SCHEMAS["profiles"]) for vlm in self.vlms}
        self.collect = {vlm.pool: self._answers(vlm.name) for vlm in self.vlms}
        self.label = {pool: self._labels(table) for pool, table in self.collect.items()}
        names = [name for name in ("train", "validation", "gate", "test_id") for _ in range(2)]
        self.split = pl.DataFrame({"query_id": IDS, "split": names})
        self.vectors = {
            "question": {"words": np.ones((NUM, 3), np.float32)},
            "picture": {"light": np.ones((NUM, 2), np.float32)},
        }
        self.index = pl.DataFrame(
            {"query_id": IDS, "question_row": range(NUM), "picture_row": range(NUM)}, schema=SCHEMAS["embed_index"]
        )
        self.correct = np.array([[1, 0]] * NUM, dtype=np.float32)
        self.collect_gate, self.label_gate = collect.CollectGate(), label.LabelGate()
        self.split_gate = split.SplitGate(min_queries=split.MinQueries(train=0, validation=2, gate=2, test_id=2))

    def _query(self, number: int) -> dict[str, Any]:
        digest = hashlib.sha256(IDS[number].encode()).hexdigest()
        text = dict.fromkeys(("benchmark", "task", "language", "answer_type", "template"), "toy")
        return text | {
            "query_id": IDS[number], "question": "How many?", "answer": "3", "image": f"{IDS[number]}.png",
            "image_sha256": digest, "image_group": f"g{number // 2}",
        }  # fmt: skip

    @staticmethod
    def _block(name: str, pool: str) -> dict[str, Any]:
        return {"name": name, "display_name": name.upper(), "provider": "Toy Lab", "pool": pool}

    @staticmethod
    def _profile(vlm: Vlm) -> dict[str, Any]:
        texts = {"vlm": vlm.name, "provider": vlm.provider, "pool": vlm.pool}
        return texts | {"profile": f"{vlm.display_name} sees."}

    @staticmethod
    def _answers(vlm: str) -> pl.DataFrame:
        known = {"cost_usd": 0.0, "spent_usd": 0.01, "latency_s": 0.5}
        rows = [{"query_id": query_id, "vlm": vlm, "output": "3"} | known for query_id in IDS[:-2]]
        rows.append({"query_id": IDS[-2], "vlm": vlm, "imported_correct": False})
        rows.append({"query_id": IDS[-1], "vlm": vlm, "error": "timed out"})
        return pl.DataFrame(rows, schema=SCHEMAS["collect"])

    @staticmethod
    def _labels(answers: pl.DataFrame) -> pl.DataFrame:
        labelled = answers.filter(pl.col("error").is_null())
        return labelled.select("query_id", "vlm", pl.col("output").is_not_null().alias("correct"),
                               pl.lit(None, pl.String).alias("predicted"))  # fmt: skip

    def seal(self) -> None:
        """Write what stage `embed` writes."""
        for modality, tensors in self.vectors.items():
            save_file(tensors, self.sealed / f"{modality}s.safetensors")
        self.index.write_parquet(self.sealed / "index.parquet")
        write_json(self.sealed / "encoders.json", {"words": {"width": 3}, "light": {"width": 2}})

    def checks(self, stage: str) -> list[Check]:
        """The checks of a data stage on this world."""
        if stage == "queries":
            return queries.checks(self.queries, images=self.images)
        if stage == "profiles":
            return profiles.checks(self.profiles)
        if stage == "collect":
            return collect.checks(self.collect, queries=self.queries, vlms=self.vlms, gate=self.collect_gate)
        if stage == "label":
            return label.checks(self.label, self.collect, gate=self.label_gate)
        if stage == "split":
            groups = self.queries.select("query_id", pl.col("image_group").alias("group"))
            return split.checks(self.split, groups, gate=self.split_gate, has_ood=False)
        self.seal()
        return embed.checks(self.sealed, self.queries)

    def hold(self, stage: str) -> Findings | None:
        """Hold the gate of a stage."""
        if stage == "train_base":
            training.hold_filtered(stage, IDS, self.correct, np.arange(NUM))
            return None
        return hold(stage, self.checks(stage))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World()


def at(frame: pl.DataFrame, row: int, **values: Any) -> pl.DataFrame:
    """`frame` with other values in one row."""
    rows = frame.to_dicts()
    rows[row] |= values
    return pl.DataFrame(rows, schema=frame.schema)


def again(frame: pl.DataFrame, row: int, **values: Any) -> pl.DataFrame:
    """`frame` with a row once more, with other values."""
    return pl.concat([frame, at(frame, row, **values)[row : row + 1]])


def lose_the_picture(world: World) -> None:
    (world.images / "q1.png").unlink()


def change_the_picture(world: World) -> None:
    (world.images / "q1.png").write_bytes(b"another")


def ask_twice(world: World) -> None:
    world.collect["base"] = again(world.collect["base"], 1)


def lose_an_answer(world: World) -> None:
    world.collect["new"] = world.collect["new"].filter(pl.col("query_id") != "q1")


def make_up_a_label(world: World) -> None:
    world.label["base"] = again(world.label["base"], 0, query_id="q7", correct=False)  # of an answer that failed


def reward_an_error(world: World) -> None:
    world.collect["base"] = at(world.collect["base"], 7, imported_correct=True)
    world.label["base"] = again(world.label["base"], 0, query_id="q7", correct=True)


def make_weak(world: World) -> None:
    world.label["new"] = world.label["new"].with_columns(correct=False)


def part_a_group(world: World) -> None:
    world.queries = at(world.queries, 2, image_group="g0")


def spoil_a_vector(world: World) -> None:
    world.vectors["picture"]["light"][3, 1] = np.nan


def widen_vectors(world: World) -> None:
    world.vectors["question"]["words"] = np.ones((NUM, 4), np.float32)


def answer_nothing(world: World) -> None:
    world.correct[2] = 0


def setting(name: str, change: Callable[[Any], Any]) -> Callable[[World], None]:
    """A break that replaces one attribute of the world."""
    return lambda world: setattr(world, name, change(getattr(world, name)))


def pool(name: str, pool: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[World], None]:
    """A break that replaces one pool's table."""
    return lambda world: getattr(world, name).update({pool: change(getattr(world, name)[pool])})


PAIR = [("q1", "a")]
BREAKS: dict[str, tuple[str, Callable[[World], None], list[tuple[Any, ...]]]] = {
    # invariant: stage, what breaks it, the failing rows by their first columns
    "queries_id_unique": ("queries", setting("queries", lambda t: again(t, 1)), [("q1",), ("q1",)]),
    "queries_question_not_empty": ("queries", setting("queries", lambda t: at(t, 1, question=" \n")), [("q1",)]),
    "queries_answer_not_empty": ("queries", setting("queries", lambda t: at(t, 1, answer="")), [("q1",)]),
    "queries_image_exists": ("queries", lose_the_picture, [("q1",)]),
    "queries_image_hash": ("queries", change_the_picture, [("q1",)]),
    "profiles_vlm_unique": ("profiles", pool("profiles", "new", lambda t: at(t, 0, vlm="a")), [("a",), ("a",)]),
    "profiles_sentence_not_empty": ("profiles", pool("profiles", "new", lambda t: at(t, 0, profile="")), [("b",)]),
    "profiles_sentence_unique": (
        "profiles", pool("profiles", "new", lambda t: at(t, 0, profile="A sees.")), [("a",), ("b",)],
    ),
    "collect_pair_unique": ("collect", ask_twice, PAIR * 2),
    "collect_pair_present": ("collect", lose_an_answer, [("q1", "b")]),
    "collect_cost_not_negative": ("collect", pool("collect", "base", lambda t: at(t, 1, cost_usd=-0.1)), PAIR),
    "collect_spent_not_negative": ("collect", pool("collect", "base", lambda t: at(t, 1, spent_usd=-0.1)), PAIR),
    "collect_latency_not_negative": ("collect", pool("collect", "base", lambda t: at(t, 1, latency_s=-1.0)), PAIR),
    "label_pair_unique": ("label", pool("label", "base", lambda t: again(t, 1)), PAIR * 2),
    "label_has_a_source": ("label", make_up_a_label, [("q7", "a")]),
    "label_error_not_correct": ("label", reward_an_error, [("q7", "a")]),
    "label_every_answer": ("label", pool("label", "base", lambda t: t.filter(pl.col("query_id") != "q1")), PAIR),
    "label_positive_share": ("label", make_weak, [("b",)]),
    "split_query_once": ("split", setting("split", lambda t: again(t, 1)), [("q1",)]),
    "split_name_known": (
        "split", setting("split", lambda t: t.with_columns(pl.col("split").replace("train", "best"))),
        [("q0",), ("q1",)],
    ),
    "split_group_in_one": ("split", part_a_group, [("q0",), ("q1",), ("q2",)]),
    "split_enough_queries": (
        "split", setting("split_gate", lambda _: split.SplitGate(min_queries=split.MinQueries(train=2, validation=2,
                                                                 gate=3, test_id=2))), [("gate",)],
    ),
    "embed_vector_finite": ("embed", spoil_a_vector, [("light", 3)]),
    "embed_width_right": ("embed", widen_vectors, [("words",)]),
    "embed_every_query": ("embed", setting("index", lambda t: t.filter(pl.col("query_id") != "q1")), [("q1",)]),
    "train_query_answered": ("train_base", answer_nothing, [("q2",)]),
}  # fmt: skip


def failing(findings: Findings) -> list[str]:
    return [finding.check.invariant.name for finding in findings.findings if finding.failed]


def kept(stage: str) -> list[str]:
    """The invariants whose failing rows lie there."""
    return sorted(path.stem for path in Path(f".arms/gates/{stage}").glob("*.parquet"))


def test_every_invariant_has_a_test_that_breaks_it() -> None:
    assert list(BREAKS) == list(INVARIANTS)
    for name, invariant in INVARIANTS.items():
        assert name.startswith(BREAKS[name][0].removesuffix("_base"))
        assert invariant.sentence.endswith(".")


@pytest.mark.parametrize("stage", STAGES)
def test_sound_output_passes_without_a_warning_and_leaves_nothing_but_its_record(world: World, stage: str) -> None:
    findings = world.hold(stage)
    assert not Path(".arms").exists()
    if findings is None:
        return
    assert failing(findings) == []
    assert [f.check.invariant.name for f in findings.findings] == [each.name for each in STAGES[stage].INVARIANTS]
    findings.write()
    record = json.loads(Path(f"gates/{stage}.json").read_text())
    assert (record["stage"], record["success"], record["num_warnings"], record["num_declared"]) == (stage, True, 0, 0)
    for each in record["expectations"]:
        invariant = INVARIANTS[each["name"]]
        assert (each["sentence"], each["severity"]) == (invariant.sentence, invariant.severity)
        assert each["checked"] > 0
        assert (each["failed"], each["declared"], each["success"]) == (0, 0, True)


@pytest.mark.parametrize("name", BREAKS)
def test_invariant_broken_alone_is_caught_by_its_name(
    world: World, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage, spoil, rows = BREAKS[name]
    spoil(world)
    if INVARIANTS[name].severity == "stop":
        with pytest.raises(DataError) as refused:
            world.hold(stage)
        text = str(refused.value)
        assert text.startswith("1 of ")
    else:
        findings = world.hold(stage)
        assert findings is not None
        assert failing(findings) == [name]
        assert findings.described()["num_warnings"] == len(rows)
        (text,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    invariant = INVARIANTS[name]
    assert f"{name}: {invariant.sentence} {len(rows)} of " in text
    assert invariant.remedy in text
    assert f".arms/gates/{stage}/{name}.parquet" in text
    assert str(rows[0][0]) in text
    assert kept(stage) == [name]
    found = pl.read_parquet(f".arms/gates/{stage}/{name}.parquet")
    assert found.select(found.columns[: len(rows[0])]).rows() == rows
    assert Path(f".arms/gates/{stage}/data_docs/index.html").is_file()


def test_several_that_fail_are_all_named(world: World) -> None:
    for name in ("queries_question_not_empty", "queries_image_hash", "queries_id_unique"):
        BREAKS[name][1](world)
    with pytest.raises(DataError, match=r"3 of 5 gates failed; nothing was published\.\n  queries_id_unique"):
        world.hold("queries")
    assert kept("queries") == ["queries_id_unique", "queries_image_hash", "queries_question_not_empty"]


def test_first_twenty_rows_are_named_and_all_are_kept_across_shards(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    num_rows = 250_000  # three shards
    invariant = Invariant(name="toy_positive", sentence="Numbers are positive.", remedy="Mend them.")
    frame = pl.DataFrame({"row": range(num_rows)}).with_columns((pl.col("row") % 1000 - 1).alias("number"))
    check = Check(invariant=invariant, rule=within("number", least=0), view=table_view("toy", frame, key=["row"]))
    with pytest.raises(DataError) as refused:
        hold("toy", [check])
    assert f"250 of {num_rows} fail, first: row 0, number -1; row 1000, number -1;" in str(refused.value)
    assert "row 19000," in str(refused.value)
    assert "row 20000," not in str(refused.value)
    assert pl.read_parquet(".arms/gates/toy/toy_positive.parquet")["row"].to_list() == list(range(0, num_rows, 1000))
    pages = list(Path(".arms/gates/toy/data_docs/validations").rglob("*.html"))
    assert len(pages) == 3
    assert max(page.stat().st_size for page in pages) < 200_000  # a page names a few rows, not all


@pytest.mark.parametrize(
    ("rule", "columns", "rows"),
    [
        (not_empty("a"), {"a": ["x", " ", "", "\u00a0", "\nx"]}, [1, 2, 3]),
        (within("a", least=0), {"a": [0.0, -0.5, None, float("nan"), float("inf")]}, [1, 3]),
        (same("a", "b"), {"a": ["x", None, "y"], "b": ["x", "x", "z"]}, [2]),
    ],
    ids=["white space is empty", "what is no number is no amount", "null is left alone"],
)
def test_rule_finds_odd_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Any, columns: dict[str, Any], rows: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame(columns).with_row_index("row")
    invariant = Invariant(name="toy", sentence="All is well.", severity="warn", remedy="None.")
    (finding,) = hold(
        "toy", [Check(invariant=invariant, rule=rule, view=table_view("toy", frame, key=["row"]))]
    ).findings
    assert finding.rows["row"].to_list() == rows


def test_what_cannot_be_judged_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invariant = Invariant(name="toy", sentence="All is well.", remedy="None.")
    view = table_view("toy", pl.DataFrame({"row": [1], "a": ["text"]}), key=["row"])
    with pytest.raises(DataError, match="toy could not be judged"):
        hold("toy", [Check(invariant=invariant, rule=within("a", least=0), view=view)])


def test_run_without_failures_removes_what_an_earlier_one_left(world: World) -> None:
    sound = world.queries
    BREAKS["queries_answer_not_empty"][1](world)
    with pytest.raises(DataError):
        world.hold("queries")
    assert Path(".arms/gates/queries").exists()
    world.queries = sound
    world.hold("queries")
    assert not Path(".arms/gates/queries").exists()


def test_weak_vlm_that_params_declare_is_declared_and_no_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    make_weak(world)
    world.label_gate = label.LabelGate(declared=["b"])
    findings = world.hold("label")
    assert findings is not None
    record = findings.described()
    assert (record["num_warnings"], record["num_declared"]) == (0, 1)
    (share,) = [each for each in record["expectations"] if each["name"] == "label_positive_share"]
    assert (share["checked"], share["failed"], share["declared"], share["success"]) == (2, 0, 1, True)
    assert share["bounds"] == {"min": 0.02, "max": 0.98}
    assert share["observed"] == {"min": 0.0, "max": round(6 / 7, 6)}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_declaration_does_not_hide_another_vlm(world: World) -> None:
    make_weak(world)
    world.label_gate = label.LabelGate(declared=["a"])  # within bounds: nothing to declare
    findings = world.hold("label")
    assert findings is not None
    assert (findings.described()["num_warnings"], findings.described()["num_declared"]) == (1, 0)


def test_missing_pair_that_params_declare_passes_and_another_does_not(world: World) -> None:
    lose_an_answer(world)
    world.collect_gate = collect.CollectGate(missing_pairs={"b": ["q1"]})
    findings = world.hold("collect")
    assert findings is not None
    assert (findings.described()["num_warnings"], findings.described()["num_declared"]) == (0, 1)
    world.collect_gate = collect.CollectGate(missing_pairs={"b": ["q2"]})  # which has an answer
    with pytest.raises(DataError, match=r"collect_pair_present: .* 1 of 15 fail, first: query_id q1, vlm b"):
        world.hold("collect")


@pytest.mark.parametrize(
    ("block", "num_asked"),
    [
        ({"benchmarks": ["toy"]}, NUM), ({"sample": 3}, 3), ({"sample": 3, "sample_from": "answered_by_base"}, 3),
        ({"sample": 1, "whole_benchmarks": ["toy"]}, NUM),
    ],
)  # fmt: skip
def test_pairs_are_asked_for_as_the_block_says(world: World, block: dict[str, Any], num_asked: int) -> None:
    world.vlms = [world.vlms[0], dataclasses.replace(world.vlms[1], **block)]
    world.collect["new"] = world.collect["new"].clear()
    with pytest.raises(DataError, match=rf"collect_pair_present: .* {num_asked} of {NUM + num_asked} fail"):
        world.hold("collect")


@pytest.mark.parametrize(
    ("stage", "attribute", "gate", "words"),
    [
        ("collect", "collect_gate", collect.CollectGate(missing_pairs={"bb": ["q1"]}), "no VLM is called 'bb'"),
        ("collect", "collect_gate", collect.CollectGate(missing_pairs={"b": ["q9"]}), "no query has the id 'q9'"),
        ("label", "label_gate", label.LabelGate(declared=["bb"]), "no answer is of a VLM 'bb'"),
    ],
)
def test_declaration_of_what_there_is_not_is_refused(
    world: World, stage: str, attribute: str, gate: Any, words: str
) -> None:
    setattr(world, attribute, gate)
    with pytest.raises(ConfigError, match=words):
        world.hold(stage)


def test_split_that_holds_nothing_out_needs_no_test_ood(world: World) -> None:
    groups = world.queries.select("query_id", pl.col("image_group").alias("group"))
    with pytest.raises(DataError, match=r"split_enough_queries.* split test_ood, num_queries 0, least 20"):
        hold("split", split.checks(world.split, groups, gate=world.split_gate, has_ood=True))


def test_record_is_the_same_whatever_the_order_of_rows(world: World) -> None:
    first = {stage: world.hold(stage) for stage in ("queries", "collect", "label", "split")}
    world.queries, world.split = world.queries.reverse(), world.split.reverse()
    for tables in (world.collect, world.label):
        tables.update({pool: table.reverse() for pool, table in tables.items()})
    for stage, findings in first.items():
        second = world.hold(stage)
        assert findings is not None
        assert second is not None
        assert second.described() == findings.described()


def test_long_values_are_cut_in_messages() -> None:
    invariant = Invariant(name="toy", sentence="Short.", remedy="Cut.")
    rows = pl.DataFrame({"a": ["x" * 500]})
    check = Check(invariant=invariant, rule=not_empty("a"), view=table_view("toy", rows, key=["a"]))
    told = Finding(check=check, checked=1, failed=1, rows=rows, shown=("a",)).told(Path("kept"))
    assert "x" * 77 + "...;" in told or "x" * 77 + "...." in told
    assert "x" * 78 not in told


def test_importing_the_gates_does_not_import_great_expectations() -> None:
    code = (
        "import sys, tasks.label, tasks.embed; sys.exit('great_expectations' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_great_expectations_was_imported_without_is_there_afterwards() -> None:
    code = (
        "import sys; from tasks.common.gates import _import; _import(); "
        "assert not {'sqlalchemy', 'boto3', 'botocore'} & set(sys.modules); "
        "import sqlalchemy, boto3; from scipy import stats; assert stats.norm.cdf(0) == 0.5"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
