"""The stages that read recorded files, on the real ones: contracts hold, nothing of the recorded set is lost."""

from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from arms_model.settings import parse
from tasks.collect import recorded_answers
from tasks.common.asked import refuse_unknown_benchmarks
from tasks.common.recorded import read_outputs, read_queries
from tasks.common.vlms import parse_vlms
from tasks.profiles import profiles
from tasks.split import SplitSettings, split_queries

pytestmark = pytest.mark.real
PRESET = YAML(typ="safe").load((Path(__file__).resolve().parents[2] / "presets/real.yaml").read_text())


def test_preset_names_every_recorded_vlm_and_keeps_every_answer(real_data: Path) -> None:
    vlms = parse_vlms(PRESET["vlms"])
    queries = read_queries(real_data)
    refuse_unknown_benchmarks(vlms, set(queries["benchmark"]))
    answers = recorded_answers(real_data, queries=queries, vlms=vlms)
    # counts of the recorded set's own description
    assert (queries.height, len(vlms), answers.height) == (10_141, 35, 112_292)
    assert answers.height == read_outputs(real_data).height


def test_every_real_vlm_has_a_sentence_of_its_own(real_data: Path) -> None:
    tables = profiles(parse_vlms(PRESET["vlms"]), sentence="full")
    assert (tables["base"].height, tables["new"].height) == (24, 11)
    sentences = pl.concat(tables.values())["profile"]
    assert sentences.n_unique() == 35
    assert not sentences.str.contains("(?i)undisclosed|unknown|none").any()
    catalogue = pl.read_csv(real_data / "vlms.csv")
    assert set(catalogue["vlm"]) == set(pl.concat(tables.values())["vlm"])


@pytest.mark.parametrize("group_by", ["image_group", "template"])
def test_no_real_group_stands_in_two_splits(real_data: Path, group_by: str) -> None:
    queries = read_queries(real_data)
    split = split_queries(queries, parse(SplitSettings, PRESET["split"] | {"group_by": group_by}, "split"))
    sides = queries.join(split, on="query_id").group_by(group_by).agg(pl.col("split").n_unique())
    assert sides["split"].max() == 1
    assert split.height == 10_141
