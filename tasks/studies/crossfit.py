"""Grouped 5-fold cross-fitting of the default router and all baselines over all queries: the figures we claim.

The fixed split tests on a fifth of the data; here every query is scored once by a router that never saw its group.
Folds are made twice: by `image_group` (new pictures, known templates) and by `template` (unknown templates). The router
is trained anew per fold and seed with the settings of `train_base`, on both pools' labels at once; its validation part
is cut from the training folds, and nothing is chosen on the outer fold. Baselines are fitted on the whole training
folds.

Run, after `make real`:

    python -m tasks.studies.crossfit --workspace workspaces/real

Every fold is kept as parquet (query_id, vlm, seed, fold, confidence in half precision, no labels) under
`docs/crossfit/`, and is not fitted again while the settings, the data and the code's `FORMAT` stay the same: a stopped
study goes on, a finished one only prints its tables.

Source: arXiv 2606.08970 has no intervals; protocol ours.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries
from arms_model.errors import ConfigError
from arms_model.evaluation import MACRO, Pool, by_confidence, evaluate, single_vlms
from arms_model.fitting import fit_router
from arms_model.folds import NUM_FOLDS, outer_folds, validation_mask
from arms_model.metrics import filtered_mask
from arms_model.progress import Progress
from arms_model.training import TrainingData
from tasks.common.comparison import (
    BASELINES,
    BEST_PER_TASK,
    BEST_SINGLE,
    KNN,
    KNN_AND_RIDGE,
    fit_predict,
    make_queries,
    scored_labels,
)
from tasks.common.dataset import Labels, load_labels, load_queries
from tasks.common.files import read_json, write_json, written_whole
from tasks.common.params import load_section
from tasks.common.results import em_lines, markdown, pair_lines, print_tables, rows_frame, write_csv
from tasks.common.routers import Inputs, RouterSettings, frozen, make_config, make_inputs
from tasks.common.stage import run_stage
from tasks.common.tables import read_parquet, write_parquet

FORMAT = 1  # raised when the way a fold is fitted changes
ROUTER = "ARMS"
GROUPINGS = ("image_group", "template")
VALIDATION_SHARE = 0.15
REFERENCES = (BEST_SINGLE, BEST_PER_TASK, KNN, KNN_AND_RIDGE)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fit: a method on one fold, with one seed where the method has seeds.

    Attributes:
        grouping: what the folds are made from.
        method: `ROUTER`, or a name in `BASELINES`.
        seed: 0 for methods without seeds.
        fold: 0 to 4, the one held out.
    """

    grouping: str
    method: str
    seed: int
    fold: int

    def path(self, folder: Path) -> Path:
        """Where its confidences are kept."""
        method = self.method.replace(" ", "-")
        return folder / self.grouping / method / f"seed{self.seed}-fold{self.fold}.parquet"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the jobs share; loaded once per process.

    Attributes:
        settings: the default router's.
        table: the queries.
        labels: our labels of both pools.
        scored: (N, K) the labels that count in tables.
        inputs: vectors, kept.
    """

    settings: RouterSettings
    table: pl.DataFrame
    labels: Labels
    scored: NDArray[np.float32]
    inputs: Inputs

    def groups(self, grouping: str) -> NDArray[np.str_]:
        """(N,) what folds are made from."""
        return np.asarray(self.table[grouping].to_list(), dtype=np.str_)

    def baseline_queries(self, grouping: str) -> Queries:
        """The queries as baselines see them."""
        return make_queries(
            self.table,
            question_encoders=self.settings.question_encoders,
            picture_encoders=self.settings.picture_encoders,
            group_by=grouping,
        )


def load_study() -> Study:
    """Read the sealed tables of the current workspace."""
    settings = load_section("train_base", RouterSettings)
    if settings.trainable_encoders:
        raise ConfigError("cross-fitting reads kept vectors; train_base.trainable_encoders must be empty for it.")
    table = load_queries()
    labels = load_labels(table, ["base", "new"])
    inputs = make_inputs(
        table,
        labels.profiles,
        question_encoders=settings.question_encoders,
        picture_encoders=settings.picture_encoders,
        profile_encoder=settings.profile_encoder,
    )
    scored = scored_labels(table, labels.vlms, labels.correct)
    return Study(settings=settings, table=table, labels=labels, scored=scored, inputs=frozen(inputs))


def fit_router_fold(study: Study, job: Job) -> NDArray[np.float32]:
    """Confidences (T, K) of the fold's queries under a router trained on the other folds."""
    groups = study.groups(job.grouping)
    outside = outer_folds(groups) != job.fold
    held_back = outside & validation_mask(groups, share=VALIDATION_SHARE, salt=f"crossfit fold {job.fold}")
    correct = study.labels.correct
    asked = ~np.isnan(correct).all(1)
    data = TrainingData(
        question=study.inputs.question,
        picture=study.inputs.picture,
        profiles=study.inputs.profiles,
        correct=torch.from_numpy(correct),
        train=torch.from_numpy(np.flatnonzero(outside & ~held_back & asked)),
        validation=torch.from_numpy(np.flatnonzero(held_back & asked)),
        groups=groups,
    )
    router = fit_router(
        make_config(study.settings, study.labels, study.inputs),
        data,
        training=study.settings.training,
        calibration=study.settings.calibration,
        memory=study.settings.memory,
        seed=job.seed,
        what=f"{job.grouping} seed {job.seed} fold {job.fold}",
    ).router
    rows = torch.from_numpy(np.flatnonzero(~outside))
    return router.confidences(study.inputs.question.rows(rows).numpy(), study.inputs.picture.rows(rows).numpy())


def fit_baseline_fold(study: Study, job: Job) -> NDArray[np.float64]:
    """Confidences (T, K) of the fold's queries under a baseline fitted on the other folds."""
    folds = outer_folds(study.groups(job.grouping))
    asked = ~np.isnan(study.labels.correct).all(1)
    return fit_predict(
        [job.method],
        study.baseline_queries(job.grouping),
        study.labels.correct,
        train=np.flatnonzero((folds != job.fold) & asked),
        test=np.flatnonzero(folds == job.fold),
    )[job.method]


def fold_frame(study: Study, job: Job, confidences: NDArray[np.floating]) -> pl.DataFrame:
    """A fold's confidences of the pairs that were asked, as a long table without labels."""
    rows = np.flatnonzero(outer_folds(study.groups(job.grouping)) == job.fold)
    row, column = np.nonzero(~np.isnan(study.scored[rows]))
    return pl.DataFrame(
        {
            "query_id": study.table["query_id"].gather(rows[row]),
            "vlm": pl.Series(list(study.labels.vlms)).gather(column),
            "seed": pl.Series([job.seed] * len(row), dtype=pl.Int16),
            "fold": pl.Series([job.fold] * len(row), dtype=pl.Int16),
            "confidence": confidences[row, column].astype(np.float16),
        }
    )


_study: Study | None = None


def _start_worker(workspace: Path) -> None:
    """Each worker uses one thread and loads the tables once."""
    global _study
    os.chdir(workspace)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    _study = load_study()


def _run(job: Job, folder: Path) -> Job:
    assert _study is not None  # noqa: S101 - set by _start_worker
    fit = fit_router_fold if job.method == ROUTER else fit_baseline_fold
    write_parquet(job.path(folder), fold_frame(_study, job, fit(_study, job)))
    return job


def fingerprint(study: Study) -> dict[str, str]:
    """What the kept folds are made of: the code's format, labels and profiles, encoders, and the router's settings."""
    data = hashlib.sha256(np.ascontiguousarray(study.labels.correct).tobytes())
    for column in ("query_id", *GROUPINGS):
        data.update("\n".join(study.table[column]).encode())
    data.update("\n".join([*study.labels.vlms, *study.labels.profiles]).encode())
    described = read_json(Path("embed/encoders.json"))
    used = (*study.settings.question_encoders, *study.settings.picture_encoders, study.settings.profile_encoder)
    return {
        "format": str(FORMAT),
        "data": data.hexdigest(),
        "encoders": json.dumps({name: described[name]["identity"] for name in used}, sort_keys=True),
        "settings": json.dumps(dataclasses.asdict(study.settings), sort_keys=True),
    }


def refuse_other_study(folder: Path, ours: dict[str, str]) -> None:
    """Refuse to mix kept folds of two studies.

    Raises:
        ConfigError: the folder's folds were made of something else.
    """
    path = folder / "study.json"
    if not path.exists():
        return
    theirs = read_json(path)
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if differing:
        raise ConfigError(
            f"{folder} holds folds of another study ({', '.join(differing)} differ). Give another --output, or --refit "
            "to fit all of them again in its place."
        )


def jobs(groupings: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All fits, the slow ones first."""
    methods = [(ROUTER, seed) for seed in seeds] + [(name, 0) for name in BASELINES]
    return [
        Job(grouping=grouping, method=method, seed=seed, fold=fold)
        for method, seed in methods
        for grouping in groupings
        for fold in range(NUM_FOLDS)
    ]


def run_jobs(todo: Sequence[Job], *, workspace: Path, folder: Path, workers: int) -> None:
    """Fit what is missing, in processes of one thread each; every finished fold is kept at once."""
    context = multiprocessing.get_context("spawn")
    with (
        Progress(len(todo), "cross-fitting", "fit") as progress,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(workspace,)) as pool,
    ):
        running = [pool.submit(_run, job, folder) for job in todo]
        try:
            for future in as_completed(running):
                future.result()
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_scores(study: Study, grouping: str, method: str, seed: int, folder: Path) -> NDArray[np.float32]:
    """The kept folds of one method and seed as one matrix (N, K); NaN for pairs that were not asked."""
    files = [Job(grouping=grouping, method=method, seed=seed, fold=fold).path(folder) for fold in range(NUM_FOLDS)]
    frame = pl.concat([read_parquet(path) for path in files])
    row_of = {query: row for row, query in enumerate(study.table["query_id"])}
    column_of = {vlm: column for column, vlm in enumerate(study.labels.vlms)}
    scores = np.full(study.scored.shape, np.nan, dtype=np.float32)
    rows = [row_of[query] for query in frame["query_id"]]
    columns = [column_of[vlm] for vlm in frame["vlm"]]
    scores[rows, columns] = frame["confidence"].cast(pl.Float32).to_numpy()
    return scores


def tables(
    study: Study, groupings: Sequence[str], seeds: Sequence[int], folder: Path, draws: int
) -> Iterator[pl.DataFrame]:
    """The result tables, per grouping and pool, from the kept folds alone."""
    is_base = np.asarray(study.labels.pools) == "base"
    benchmark = np.asarray(study.table["benchmark"].to_list(), dtype=np.str_)
    for grouping in groupings:
        router = [read_scores(study, grouping, ROUTER, seed, folder) for seed in seeds]
        baselines = {name: read_scores(study, grouping, name, 0, folder) for name in BASELINES}
        for pool, inside in (("base", is_base), ("extended", np.ones_like(is_base))):
            correct = np.where(inside, study.scored, np.nan).astype(np.float32)
            candidates = ~np.isnan(correct)
            methods = [by_confidence(ROUTER, "router", router, candidates)]
            methods += [by_confidence(name, "baseline", [part], candidates) for name, part in baselines.items()]
            methods += single_vlms(study.labels.vlms, baselines[BEST_SINGLE], candidates)
            rows = evaluate(
                methods,
                Pool(
                    correct=correct,
                    answered=filtered_mask(study.scored),
                    benchmark=benchmark,
                    group=study.groups(grouping),
                    own=study.labels.correct,
                ),
                references=REFERENCES,
                draws=draws,
            )
            yield rows_frame(rows, grouping=grouping, pool=pool)


def compare(frame: pl.DataFrame) -> str:
    """A sentence per table: how the router stands to the references on macro EM."""
    lines = []
    for (grouping, pool), part in frame.group_by("grouping", "pool", maintain_order=True):
        row = part.filter((pl.col("benchmark") == MACRO) & (pl.col("method") == ROUTER)).row(0, named=True)
        for reference in REFERENCES:
            name = f"minus_{reference.replace(' ', '_')}"
            mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not told apart from"
            lines.append(
                f"{grouping}, {pool} pool: {ROUTER} is {verdict} {reference}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
    return "\n".join(lines)


def study(arguments: argparse.Namespace) -> None:
    """Fit what is missing, then make the tables."""
    folder = arguments.output.resolve()
    if not (arguments.workspace / "params.yaml").exists():
        raise ConfigError(f"{arguments.workspace} is no workspace (no params.yaml there); run `make real` first.")
    workspace = arguments.workspace.resolve()
    os.chdir(workspace)
    loaded = load_study()
    ours = fingerprint(loaded)
    if not arguments.refit:
        refuse_other_study(folder, ours)
    wanted = jobs(arguments.groupings, arguments.seeds)
    todo = [job for job in wanted if arguments.refit or not job.path(folder).exists()]
    logger.info("%d of %d fits are kept already; %d to do", len(wanted) - len(todo), len(wanted), len(todo))
    write_json(folder / "study.json", ours)
    if todo:
        run_jobs(todo, workspace=workspace, folder=folder, workers=arguments.workers)
    parts = list(tables(loaded, arguments.groupings, arguments.seeds, folder=folder, draws=arguments.draws))
    frame = pl.concat(parts, how="diagonal_relaxed")
    write_csv(folder / "table.csv", frame)
    for part in parts:
        grouping, pool = part.row(0)[:2]
        print_tables(part, f"folds by {grouping}, {pool} pool, {len(arguments.seeds)} seeds")
    print(compare(frame))
    with written_whole(folder / "tables.md") as temporary:
        temporary.write_text("\n".join(markdown_section(part) for part in parts), encoding="utf-8")


def markdown_section(part: pl.DataFrame) -> str:
    """One pool's tables in Markdown."""
    grouping, pool = part.row(0)[:2]
    return f"### Folds by `{grouping}`, {pool} pool\n\n{markdown(*em_lines(part))}\n\n{markdown(*pair_lines(part))}\n"


def main() -> int:
    """Run the study; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.studies.crossfit", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--workspace", type=Path, default=Path("workspaces/real"), help="where `make real` ran (default: %(default)s)")
    add("--output", type=Path, default=Path("docs/crossfit"), help="folder of kept folds (default: %(default)s)")
    add("--groupings", nargs="+", choices=GROUPINGS, default=list(GROUPINGS), help="what folds are made from")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="the router's seeds (default: 0 1 2)")
    add("--draws", type=int, default=10_000, help="of the cluster bootstrap (default: %(default)s)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each (default: the cores)")
    add("--refit", action="store_true", help="fit all folds again")
    arguments = parser.parse_args()
    return run_stage("crossfit", lambda: study(arguments))


if __name__ == "__main__":
    sys.exit(main())
