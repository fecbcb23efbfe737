"""The report's frames by hand and on the finished toy tree, its files, and what it says where there is nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from PIL import Image, PngImagePlugin

from arms_model.evaluation import MACRO
from arms_model.metrics import expected_calibration_error, outcomes
from tasks.common.report import drawing, frames
from tasks.common.report.cards import clean, small_picture
from tasks.common.report.inputs import Inputs, Served, as_matrix, read_inputs
from tasks.common.report.labels import place_labels
from tasks.common.strategies import Scores, Strategy
from tasks.common.vlms import Vlm
from tasks.report import ReportSettings

if TYPE_CHECKING:
    from tests.conftest import Tree

NAN = np.nan
PLOTS = ("main_results", "complementarity", "tau_sweep", "training_curves", "reliability", "accuracy_cost")


class Tables(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def page_of(tree: Tree) -> str:
    return (tree.folder / "report/report.html").read_text(encoding="utf-8")


def report_again(tree: Tree, **environment: str) -> str:
    """Run the stage in a tree that a test changed; the page."""
    result = tree.stage("report", **environment)
    assert result.returncode == 0, result.stderr
    return page_of(tree)


def made_up(scored: list[list[float]], pools: str, *, benchmark: str | None = None) -> Inputs:
    """Inputs of a few queries; `pools` has a letter for each VLM, b or n."""
    names = ["alpha", "beta", "gamma"][: len(pools)]
    vlms = tuple(
        Vlm(name=name, display_name=name.title(), provider="p", pool="base" if pool == "b" else "new")
        for name, pool in zip(names, pools, strict=True)
    )
    labels = np.array(scored, dtype=np.float32)
    num = len(scored)
    confidences = np.tile(np.float32([0.9, 0.5, 0.1][: len(pools)]), (num, 1))
    queries = pl.DataFrame(
        {
            "query_id": [f"q{row}" for row in range(num)],
            "benchmark": list(benchmark or "x" * num),
            "task": ["t"] * num,
            "split": ["test_id"] * num,
        }
    )
    base = Served(strategy=Strategy(routers=("base",)), row="ARMS base", em=None, em_low=None, em_high=None)
    return Inputs(
        seed=0, vlms=vlms, display_names={vlm.name: vlm.display_name for vlm in vlms}, queries=queries,
        answers=pl.DataFrame(), scored=labels, table=pl.DataFrame(), tau=pl.DataFrame(), cost=pl.DataFrame(),
        scores=Scores(base=confidences, incremental=None, independent=None),
        served=(base,), num_held_out=0, curves={"base": pl.DataFrame()}, metrics={}, gates=(), hashes={},
    )  # fmt: skip


def test_complementarity_is_the_share_of_one_vlms_wrong_queries_that_another_answers() -> None:
    # alpha is wrong on q0, q1, q2; beta was asked q0 and q1 of them, right on q0
    frame = frames.complementarity(made_up([[0, 1], [0, 0], [0, NAN], [1, 0]], "bb"))
    assert frame.sort("vlm_wrong").rows() == [("alpha", "beta", 0.5, 2), ("beta", "alpha", 0.5, 2)]


def test_complementarity_leaves_out_vlms_without_labels_and_pairs_that_never_met() -> None:
    frame = frames.complementarity(made_up([[0, NAN, NAN], [NAN, 0, NAN]], "bbn"))
    assert frame.height == 0
    assert frames.unlabelled(made_up([[0, NAN, NAN], [NAN, 0, NAN]], "bbn")) == ["Gamma"]


def test_heat_map_puts_base_before_new_and_the_better_first() -> None:
    frame = frames.complementarity(made_up([[0, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], "nbb"))
    assert list(dict.fromkeys(frame["vlm_wrong"])) == ["beta", "gamma", "alpha"]


def test_bins_hold_equally_many_pairs_and_give_the_calibration_error_of_the_tables() -> None:
    generator = np.random.default_rng(0)
    confidence = np.round(generator.random(997), 2)  # many ties
    label = (generator.random(997) < confidence**1.5).astype(np.float64)
    bins = frames.equal_mass_bins(confidence, label)
    assert bins["num_pairs"].sum() == 997
    assert frames.calibration_error(bins) == pytest.approx(expected_calibration_error(label, confidence))
    assert (bins["low"] <= bins["share_right"]).all()
    assert (bins["share_right"] <= bins["high"]).all()


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: Wilson's interval is .490 to .943 (Newcombe 1998)
    bins = frames.equal_mass_bins(np.full(10, 0.7), np.array([1.0] * 8 + [0.0] * 2))
    assert bins.select("low", "high").row(0) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_task_table_by_hand() -> None:
    # the router always takes alpha: right on 1 of 2; beta would have been right on both
    rows = frames.per_task(made_up([[1, 1], [0, 1]], "bb"), "test_id").to_dicts()
    assert rows == [
        {"benchmark": "x", "task": "t", "num_queries": 2, "picked": 0.5, "hindsight": 1.0, "hindsight_vlm": "beta",
         "random": 0.75, "oracle": 1.0}
    ]  # fmt: skip


def test_best_vlm_in_hindsight_was_asked_nearly_all() -> None:
    rows = frames.per_task(made_up([[1, 1], [0, NAN]], "bb"), "test_id").to_dicts()
    assert (rows[0]["hindsight"], rows[0]["hindsight_vlm"]) == (0.5, "alpha")  # beta's one answer counts for nothing


def test_dataset_table_counts_a_query_in_every_pool_that_was_asked_it() -> None:
    rows = frames.dataset_table(made_up([[1, NAN], [0, 1], [NAN, 1]], "bn"))
    assert [(row.scenario, row.pool, row.num_vlms, row.counts.get("test_id")) for row in rows] == [
        ("ID", "base", 1, 2), ("ID", "new", 1, 2), ("OOD", "base", 1, None), ("OOD", "new", 1, None),
        ("Total", "all queries", 2, 3),
    ]  # fmt: skip


def test_matrix_leaves_out_strangers() -> None:
    rows = pl.DataFrame({"query_id": ["b", "z"], "vlm": ["v", "v"], "x": [1.0, 2.0]})
    np.testing.assert_array_equal(as_matrix(rows, "x", ["a", "b"], ["u", "v"]), np.float32([[NAN, NAN], [NAN, 1.0]]))


def test_choices_of_the_picked_strategy_are_those_of_the_table(
    finished_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_tree.folder)
    inputs = read_inputs()
    rows = inputs.rows_of("test_id")
    right = outcomes(inputs.scored[rows], frames.picked_choice(inputs, rows).column)
    ours = inputs.queries[rows].select("benchmark").with_columns(em=pl.Series(right)).group_by("benchmark").mean()
    table = inputs.table.filter(
        (pl.col("method") == inputs.picked.row)
        & (pl.col("pool") == inputs.widest_pool)
        & (pl.col("benchmark") != MACRO)
    ).select("benchmark", pl.col("em").alias("expected"))
    joined = ours.join(table, on="benchmark")
    assert joined.height == 3
    assert joined["em"].to_list() == pytest.approx(joined["expected"].to_list(), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"title": " "}, "title may not be empty"), ({"cards": -1}, "between 0 and 50, got -1")],
)
def test_settings_that_cannot_be_shown_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReportSettings(**settings)  # type: ignore[arg-type]


def test_text_is_cleaned_of_control_characters_and_cut() -> None:
    assert clean(" a\x00b\nc\x1b[0m ", 20) == "a\ufffdb\nc\ufffd[0m"
    assert clean("abcdef", 4) == "abc…"


def test_picture_is_small_and_carries_no_metadata(tmp_path: Path) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "secret place")
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "a.png", pnginfo=note, exif=exif, icc_profile=b"secret place")
    uri, size = small_picture(tmp_path / "a.png")
    assert size == (320, 160)
    assert uri.startswith("data:image/webp;base64,")
    content = base64.b64decode(uri.split(",", 1)[1])
    assert b"secret" not in content
    with Image.open(io.BytesIO(content)) as picture:
        assert not {"exif", "icc_profile", "xmp"} & set(picture.info)


def test_labels_do_not_cover_one_another() -> None:
    with drawing.look():
        figure = drawing.new_figure(400, 300)
        axes = figure.subplots()
        labels = [(0.5 + 0.01 * number, 0.5, f"a label {number}", "#000000") for number in range(6)]
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        figure.draw_without_rendering()
        place_labels(axes, labels)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_figure_is_drawn_alike_whatever_the_users_own_settings(finished_tree: Tree, copied_tree: Tree) -> None:
    (copied_tree.folder / "matplotlibrc").write_text("font.size: 30\nfigure.facecolor: black\nsvg.fonttype: path\n")
    report_again(copied_tree, PYTHONHASHSEED="7", TZ="Asia/Tokyo", MPLCONFIGDIR=str(copied_tree.folder))
    assert copied_tree.sha256("report") == finished_tree.sha256("report")


def test_page_has_the_figures_of_the_table(finished_tree: Tree) -> None:
    page, table = Tables(page_of(finished_tree)).tables, pl.read_csv(finished_tree.folder / "cascade_eval/table.csv")
    shown = {tuple(row[:3]) for rows in page for row in rows}
    macro = table.filter((pl.col("benchmark") == MACRO) & (pl.col("kind") != "single"))
    plain = macro.filter(~pl.col("method").str.contains(", tau "))
    assert plain.height > 10
    for row in plain.iter_rows(named=True):
        assert (row["method"], f"{row['em']:.4f}", f"[{row['em_low']:.4f}, {row['em_high']:.4f}]") in shown


def test_page_follows_the_table(copied_tree: Tree) -> None:
    path = copied_tree.folder / "cascade_eval/table.csv"
    here = (pl.col("method") == "ridge") & (pl.col("benchmark") == MACRO) & (pl.col("pool") == "base")
    frame = pl.read_csv(path).with_columns(em=pl.when(here).then(0.98765).otherwise("em"))
    frame.write_csv(path)
    page = report_again(copied_tree)
    assert ["ridge", "0.9877"] in [row[:2] for rows in Tables(page).tables for row in rows]
    assert "ridge (98.8\N{NO-BREAK SPACE}%)" in page  # among the baselines that do better
    assert "ridge 0.988" in page  # the figure's text alternative


def test_page_asks_nobody_and_runs_nothing(finished_tree: Tree) -> None:
    page = page_of(finished_tree)
    assert len(page.encode()) < 5_000_000
    assert "<script" not in page.lower()
    assert "@import" not in page
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)\)""", page)
    assert addresses
    assert all((one or other).startswith(("data:", "#")) for one, other in addresses)
    assert not re.findall(r"https?://", page)


def test_ids_of_the_page_are_unique_and_links_lead_somewhere(finished_tree: Tree) -> None:
    page = page_of(finished_tree)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {one or other for one, other in targets} <= set(ids)


def test_figures_and_their_data_hold_no_question_answer_or_picture(finished_tree: Tree) -> None:
    files = [*(finished_tree.folder / "report/figures").iterdir(), *(finished_tree.folder / "report/plots").iterdir()]
    assert {path.stem for path in files if path.suffix == ".csv"} == set(PLOTS)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert "<image" not in text
    assert "base64" not in text
    for words in ("Drawing", "how many squares", "The answer is", "colours/0"):
        assert words not in text
        assert words in page_of(finished_tree)


def test_dvc_plots_show_draws_the_figures(finished_tree: Tree) -> None:
    result = finished_tree.run("dvc", "plots", "show", "--json")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)["data"]
    for name in PLOTS:
        (plot,) = shown[f"report/plots/{name}.csv"]
        content = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        assert "<DVC_METRIC" not in json.dumps(content)
        expected = pl.read_csv(finished_tree.folder / f"report/plots/{name}.csv")
        assert len(content["data"]["values"]) == expected.height
    heat = shown["report/plots/complementarity.csv"][0]["content"]
    assert "cividis" in json.dumps(heat)


def test_missing_test_ood_is_said(finished_tree: Tree) -> None:
    assert "no query of split <code>test_ood</code> has a label" in page_of(finished_tree)


def test_vlm_without_labels_is_named_and_stands_in_no_figure(copied_tree: Tree) -> None:
    for table in ("label", "collect"):
        path = copied_tree.folder / f"{table}/base.parquet"
        pl.read_parquet(path).filter(pl.col("vlm") != "toy-weak-1b").write_parquet(path)
    page = report_again(copied_tree)
    assert "Without a single label, so in no figure: Toy Weak 1B." in page
    pairs = pl.read_csv(copied_tree.folder / "report/plots/complementarity.csv")
    assert "toy-weak-1b" not in pairs["vlm_wrong"].to_list()


def test_empty_new_pool_is_said_and_everything_else_is_shown(copied_tree: Tree) -> None:
    params = copied_tree.params()
    params["vlms"] = [vlm for vlm in params["vlms"] if vlm["pool"] == "base"]
    copied_tree.write_params(params)
    assert copied_tree.repro("report")[-1] == "report"
    page = page_of(copied_tree)
    assert "Pool new is empty" in page
    assert "No second router was learnt, so there is no cascade and no threshold." in page
    assert "Incremental router: nothing to learn" in page
    assert "ARMS base" in page
    assert pl.read_csv(copied_tree.folder / "report/plots/tau_sweep.csv").height == 0
    assert copied_tree.run("dvc", "plots", "show", "--json").returncode == 0


def test_no_sample_cards_where_none_are_wanted(copied_tree: Tree) -> None:
    params = copied_tree.params()
    params["report"]["cards"] = 0
    copied_tree.write_params(params)
    assert "<img" not in report_again(copied_tree)


def test_cards_show_right_and_wrong_choices_with_the_chosen_marked(finished_tree: Tree) -> None:
    page = page_of(finished_tree)
    right, wrong = page.split("Wrong choices that could have been right")
    for part, label in ((right.split("Right choices")[1], "✓ right"), (wrong.split('id="tau"')[0], "✗ wrong")):
        cards = part.split("<article")[1:]
        assert cards
        for card in cards:
            chosen = [row for row in card.split("<tr") if "← chosen" in row]
            assert len(chosen) == 1
            assert label in chosen[0]
            assert "✓ right" in card  # of a wrong choice: another VLM was right


@pytest.mark.parametrize("path", ["cascade_eval/selection.json", "cascade_eval/cost.csv", "label/new.parquet"])
def test_missing_input_is_named(copied_tree: Tree, path: str) -> None:
    (copied_tree.folder / path).unlink()
    result = copied_tree.stage("report")
    assert result.returncode == 1
    assert f"report: {path} is missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_page_that_is_too_large_is_refused(copied_tree: Tree) -> None:
    params = copied_tree.params()
    params["report"]["note"] = "much " * 1_000_000
    copied_tree.write_params(params)
    before = copied_tree.sha256("report")
    result = copied_tree.stage("report")
    assert result.returncode == 1
    assert "at most 5,000,000 are allowed" in result.stderr
    assert copied_tree.sha256("report") == before
