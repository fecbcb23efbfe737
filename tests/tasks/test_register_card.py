"""The model card: worse is said as worse, and it fits into MLflow's description whatever it is about."""

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from arms_model.answering import ServedRouter
from arms_model.logged_model import MAX_DESCRIPTION
from arms_model.served import load_served, save_served
from tasks.common.cards import CardInputs, model_card
from tasks.common.version_notes import data_hash
from tests.arms_model.toys import save_toy_cascade, save_toy_router, trained
from tests.conftest import Tree

METHOD = "ARMS base + independent, tau 0.6"
ENTRY = {
    "strategy": "base + independent", "routers": ["train_base", "train_independent"], "tau": 0.6, "vlms": [],
    "em": 0.61, "em_low": 0.58, "em_high": 0.64, "num_queries": 500,
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedRouter:
    folder = tmp_path_factory.mktemp("card") / "served"
    save_toy_cascade(folder)
    return load_served(folder)


def row(method: str, *, split: str = "test_id", benchmark: str = "macro", minus: float = 0.0, **more: Any) -> Any:
    figures = {"em": 0.6 + minus, "em_low": 0.55 + minus, "em_high": 0.65 + minus, "num_queries": 200.0}
    for name in ("best_single", "kNN"):
        figures |= {f"minus_{name}": minus, f"minus_{name}_low": minus - 0.02, f"minus_{name}_high": minus + 0.02}
    calibration = {"ece": 0.0321, "ece_chosen": 0.05, "log_loss": 0.4, "brier": 0.13}
    names = {"split": split, "pool": "extended", "benchmark": benchmark, "method": method}
    return names | figures | calibration | more


def table(*rows: Any) -> pl.DataFrame:
    baselines = [row(name) for name in ("best single", "best per task", "kNN", "oracle")]
    return pl.DataFrame([*rows, *baselines], infer_schema_length=None)


def card(served: ServedRouter, frame: pl.DataFrame, **changes: Any) -> str:
    counts = pl.DataFrame({"benchmark": ["one", "two", "one"], "split": ["train", "gate", "test_id"], "len": [7, 5, 3]})
    inputs = CardInputs(
        model="arms-router", entry=ENTRY, served=served, table=frame, counts=counts, num_labels=(1200, 340),
        data="0123456789abcdef", commit="a" * 40, is_recorded_later=False, is_sandbox=False,
    )  # fmt: skip
    return model_card(dataclasses.replace(inputs, **changes))


def test_better_worse_and_undecided_are_said_as_such(served: ServedRouter) -> None:
    better = card(served, table(row(METHOD, minus=0.05)))
    assert "test_id: better than best single by +0.0500 [+0.0300, +0.0700]." in better
    worse = card(served, table(row(METHOD, minus=-0.05)))
    assert "test_id: **worse than best single** by -0.0500 [-0.0700, -0.0300]." in worse
    assert "test_id: **worse than kNN**" in worse
    undecided = card(served, table(row(METHOD, minus=0.01)))
    assert "test_id: no difference to best single is shown, +0.0100 [-0.0100, +0.0300]." in undecided


def test_weak_groups_are_named_with_their_intervals(served: ServedRouter) -> None:
    frame = table(
        row(METHOD),
        row(METHOD, benchmark="one", minus=-0.1),
        row(METHOD, benchmark="two", minus=0.1),
        row(METHOD, split="test_ood", benchmark="three", minus=-0.2),
    )
    text = card(served, frame)
    assert "- test_ood, three: -0.2000 [-0.2200, -0.1800] (200 queries)\n- test_id, one: -0.1000" in text
    assert "two:" not in text
    assert "On no benchmark below the best single VLM." in card(served, table(row(METHOD)))


def test_card_says_what_it_is_made_of_and_how_to_load_it(served: ServedRouter) -> None:
    text = card(served, table(row(METHOD)))
    for words in (
        "# ARMS router: base + independent, tau 0.6",
        f"Digest `{served.digest[:12]}`, code `{'a' * 12}`, data `0123456789abcdef`.",
        "0.6100 [0.5800, 0.6400]",
        "| test_id | 0.0321 | 0.0500 | 0.4000 | 0.1300 |",
        "Base router: a, c\n\nNew router: b, d",
        "1,200 labels of base VLMs and 340 of new ones",
        "| one | 7 | 0 | 0 | 3 | 0 |",
        "python -m tasks.register load champion",
        'mlflow.pyfunc.load_model("models:/arms-router@champion")',
        "No labelled query in test_ood.",
    ):
        assert words in text


def test_sandbox_claims_nothing_about_real_vlms(served: ServedRouter) -> None:
    words = "the figures claim nothing about real VLMs"
    assert words in card(served, table(row(METHOD)), is_sandbox=True)
    assert words not in card(served, table(row(METHOD)))


def test_commit_that_is_none_is_unknown(served: ServedRouter) -> None:
    assert "code `unknown`" in card(served, table(row(METHOD)), commit="none: no git checkout")


def test_commit_of_the_recording_is_not_said_to_be_the_codes(served: ServedRouter) -> None:
    text = card(served, table(row(METHOD)), is_recorded_later=True)
    assert f"recorded at commit `{'a' * 12}`, data" in text
    assert "code `" not in text


def test_data_hash_names_the_data_of_the_pools_that_were_learned_and_nothing_else(
    copied_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied_tree.folder)

    def hashes() -> list[str]:
        return [data_hash(stages) for stages in (["train_base"], ["train_base", "train_independent"])]

    before = hashes()
    assert len(set(before)) == 2
    params = copied_tree.params()
    params["train_base"]["training"]["learning_rate"] = 0.001
    copied_tree.write_params(params)
    for stage in ("train_base", "train_independent"):
        (copied_tree.folder / f"models/{stage}/config.json").write_text("{}")  # another router
    assert hashes() == before
    (copied_tree.folder / "dvc.lock").unlink()  # then what stands on disk counts
    path = copied_tree.folder / "label/new.parquet"
    pl.read_parquet(path).head(20).write_parquet(path)
    after = hashes()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_card_of_a_base_router_is_read_from_the_base_pool(served: ServedRouter) -> None:
    frame = table(row("ARMS base", minus=0.03) | {"pool": "base"})
    assert "0.6300 [0.5800, 0.6800]" in card(served, frame, entry=ENTRY | {"strategy": "base", "tau": None})


def test_router_without_a_row_in_the_table_has_a_card(served: ServedRouter) -> None:
    assert "No labelled query in test_id. No labelled query in test_ood." in card(served, table())


def test_long_card_leaves_out_list_entries_and_says_so(served: ServedRouter) -> None:
    rows = [row(METHOD), *(row(METHOD, benchmark=f"benchmark {n:03d}", minus=-0.1) for n in range(300))]
    counts = pl.DataFrame({"benchmark": [f"benchmark {n:03d}" for n in range(300)], "split": "train", "len": 1})
    text = card(served, table(*rows), counts=counts)
    assert len(text) <= MAX_DESCRIPTION
    assert "more" in text.split("## Weak groups")[1].split("##")[0]
    assert "| 300 benchmarks | 300 | 0 |" in text
    assert text.endswith("not why.\n")  # shorter, not cut


def test_card_of_many_vlms_names_where_all_stand(tmp_path: Path) -> None:
    names = tuple(f"a-vision-language-model-with-a-long-name-{number:03d}" for number in range(150))
    save_toy_router(tmp_path / "router", names)
    (tmp_path / "served").mkdir()
    save_served(
        tmp_path / "served", strategy="base + independent", base=trained().base, new=tmp_path / "router", tau=0.6
    )
    text = card(load_served(tmp_path / "served"), table(row(METHOD)))
    assert len(text) <= MAX_DESCRIPTION
    assert "more (tag `arms.vlms`)" in text
