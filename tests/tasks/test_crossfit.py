"""The cross-fitting study on the finished toy tree, with tiny settings: nothing leaks, and a stopped study goes on."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import torch

from arms_model.folds import outer_folds
from tasks.common.comparison import BASELINES
from tasks.studies.crossfit import (
    ROUTER,
    Job,
    Study,
    fingerprint,
    fit_baseline_fold,
    fit_router_fold,
    jobs,
    load_study,
)
from tasks.studies.crossfit_report import REFERENCES, compare, document
from tasks.studies.kept_folds import kept_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Tree

COMMAND = (
    "python",
    "-m",
    "tasks.studies.crossfit",
    "--workspace",
    ".",
    "--seeds",
    "0",
    "--draws",
    "50",
    "--workers",
    "2",
)
NUM_FITS = (1 + len(BASELINES)) * 5


@pytest.fixture
def loaded(finished_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    monkeypatch.chdir(finished_tree.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_study()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole small study."""
    output = tmp_path_factory.mktemp("crossfit") / "output"
    result = finished_tree.run(*COMMAND, "--output", str(output), "--groupings", "template")
    assert result.returncode == 0, result.stderr
    assert f"0 of {NUM_FITS} fits are kept already; {NUM_FITS} to do" in result.stderr
    return output


def with_turned_labels(study: Study, rows: np.ndarray) -> Study:
    correct = study.labels.correct.copy()
    correct[rows] = 1 - correct[rows]
    return dataclasses.replace(study, labels=dataclasses.replace(study.labels, correct=correct))


@pytest.mark.parametrize("grouping", ["image_group", "template"])
@pytest.mark.parametrize("method", [ROUTER, *BASELINES])
def test_fold_never_sees_its_own_labels(loaded: Study, method: str, grouping: str) -> None:
    fit = fit_router_fold if method == ROUTER else fit_baseline_fold
    job = Job(grouping=grouping, method=method, seed=0, fold=1)
    held_out = outer_folds(loaded.groups(grouping)) == 1
    assert held_out.any()
    plain = fit(loaded, job)
    np.testing.assert_array_equal(fit(with_turned_labels(loaded, held_out), job), plain)
    assert not np.array_equal(fit(with_turned_labels(loaded, ~held_out), job), plain)  # the others' labels do count


def test_folds_keep_groups_whole_and_hold_every_query_once(loaded: Study) -> None:
    for grouping in ("image_group", "template"):
        folds = outer_folds(loaded.groups(grouping))
        assert set(folds.tolist()) == {0, 1, 2, 3, 4}
        pairs = set(zip(loaded.groups(grouping).tolist(), folds.tolist(), strict=True))
        assert len(pairs) == len(set(loaded.groups(grouping).tolist()))


@pytest.mark.parametrize(
    "change",
    [
        lambda study: {"table": study.table.with_columns(benchmark=pl.col("benchmark").str.to_uppercase())},
        lambda study: {"table": study.table.with_columns(task=pl.lit("one"))},
        lambda study: {"table": study.table.with_columns(answer_type=pl.lit("free"))},
        lambda study: {"table": study.table.with_columns(template=pl.lit("one"))},
        lambda study: {"scored": 1 - study.scored},
        lambda study: {"labels": dataclasses.replace(study.labels, correct=1 - study.labels.correct)},
        lambda study: {"labels": dataclasses.replace(study.labels, pools=("base",) * len(study.labels.vlms))},
    ],
)
def test_fingerprint_tells_other_data(loaded: Study, change: object) -> None:
    ours = fingerprint(loaded)
    changed = fingerprint(dataclasses.replace(loaded, **change(loaded)))  # type: ignore[operator]
    assert {name for name in ours if ours[name] != changed[name]} == {"data"}


def test_fingerprint_tells_other_settings(loaded: Study) -> None:
    training = dataclasses.replace(loaded.settings.training, epochs=7)
    changed = fingerprint(dataclasses.replace(loaded, settings=dataclasses.replace(loaded.settings, training=training)))
    assert {name for name, value in fingerprint(loaded).items() if value != changed[name]} == {"settings"}
    assert fingerprint(loaded) == fingerprint(load_study())


def test_finished_study_keeps_every_fold_and_its_tables(finished: Path, finished_tree: Tree) -> None:
    expected = [job.path(finished) for job in jobs(["template"], [0])]
    assert kept_files(finished) == sorted(expected)
    asked = pl.concat([finished_tree.table(f"label/{pool}") for pool in ("base", "new")]).height
    folds = pl.concat([pl.read_parquet(finished / f"template/{ROUTER}/seed0-fold{fold}.parquet") for fold in range(5)])
    assert folds.select("query_id", "vlm").unique().height == folds.height == asked
    table = pl.read_csv(finished / "table.csv")
    assert set(table["pool"]) == {"base", "extended"}
    assert {ROUTER, *BASELINES, "oracle", "random"} <= set(table["method"])
    written = (finished / "tables.md").read_text()
    assert "unfiltered EM of 90 queries" in written
    assert f"{2 * len(REFERENCES)} comparisons were made" in written  # two pools of one grouping


def test_report_says_how_the_router_stands_and_how_many_comparisons_there_are(finished: Path) -> None:
    table = pl.read_csv(finished / "table.csv")
    figures = {"minus_kNN": 0.02, "minus_kNN_low": 0.01, "minus_kNN_high": 0.03}
    text = compare(table.with_columns(pl.lit(value).alias(name) for name, value in figures.items()))
    assert f"template, base pool: {ROUTER} is above kNN: +0.0200 [+0.0100, +0.0300]" in text
    figures = {"minus_kNN": 0.0, "minus_kNN_low": -0.01, "minus_kNN_high": 0.03}
    text = compare(table.with_columns(pl.lit(value).alias(name) for name, value in figures.items()))
    assert f"template, base pool: {ROUTER} is not told apart from kNN" in text
    assert document([table.filter(pl.col("pool") == "base")]).count("### ") == 2


def test_stopped_study_keeps_what_is_done_and_goes_on_to_the_same_folds(
    finished: Path, finished_tree: Tree, tmp_path: Path
) -> None:
    command = [*COMMAND, "--output", str(tmp_path / "output"), "--groupings", "template"]
    # a terminal's Ctrl-C goes to the whole group: to the study and to its workers
    with subprocess.Popen(
        command, cwd=finished_tree.folder, env=finished_tree.environment(), text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not kept_files(tmp_path / "output"):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "crossfit: stopped by Ctrl-C." in errors
    assert "Traceback" not in errors
    kept = len(kept_files(tmp_path / "output"))
    assert 0 < kept < NUM_FITS
    assert not list(tmp_path.rglob("*.tmp"))
    result = finished_tree.run(*command)
    assert result.returncode == 0, result.stderr
    assert f"{kept} of {NUM_FITS} fits are kept already" in result.stderr
    ours = {path.relative_to(tmp_path / "output"): path.read_bytes() for path in kept_files(tmp_path / "output")}
    assert ours == {path.relative_to(finished): path.read_bytes() for path in kept_files(finished)}


def test_finished_study_fits_nothing_again(
    finished: Path, finished_tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # in this process, where no worker is started: what is left are the tables
    from tasks.studies import crossfit

    monkeypatch.chdir(finished_tree.folder)
    before = {path: path.stat().st_mtime_ns for path in kept_files(finished)}
    arguments = argparse.Namespace(
        workspace=finished_tree.folder,
        output=finished,
        groupings=["template"],
        seeds=[0],
        draws=50,
        workers=1,
        refit=False,
    )
    tables = (finished / "table.csv").read_bytes()
    crossfit.study(arguments)
    assert {path: path.stat().st_mtime_ns for path in kept_files(finished)} == before
    assert (finished / "table.csv").read_bytes() == tables
    assert f"{2 * len(REFERENCES)} comparisons were made" in capsys.readouterr().out


def test_folds_of_another_study_end_it_with_2(finished_tree: Tree, finished: Path) -> None:
    spoilt = finished.parent / "spoilt"
    spoilt.mkdir()
    for name in ("study.json", f"template/{ROUTER}/seed0-fold0.parquet"):
        (spoilt / name).parent.mkdir(parents=True, exist_ok=True)
        (spoilt / name).write_bytes((finished / name).read_bytes())
    (spoilt / "study.json").write_text((spoilt / "study.json").read_text().replace('"format": "', '"format": "9'))
    result = finished_tree.run(*COMMAND, "--output", str(spoilt))
    assert result.returncode == 2
    assert "holds folds of another study (format differ)" in result.stderr
    assert "Traceback" not in result.stderr
