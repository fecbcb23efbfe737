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
import contextlib
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries
from arms_model.errors import ArmsError, ConfigError
from arms_model.evaluation import by_confidence
from arms_model.fitting import fit_router
from arms_model.folds import NUM_FOLDS, outer_folds, validation_mask
from arms_model.progress import Progress
from arms_model.training import TrainingData
from tasks.common.comparison import (
    BASELINES,
    fit_predict,
    make_queries,
    pool_table,
    scored_labels,
)
from tasks.common.dataset import Labels, describe_encoders, load_labels, load_queries
from tasks.common.files import written_whole
from tasks.common.params import load_section
from tasks.common.results import (
    print_tables,
    rows_frame,
    write_csv,
)
from tasks.common.routers import Inputs, RouterSettings, frozen, make_config, make_inputs
from tasks.common.stage import run_command
from tasks.studies.crossfit_report import REFERENCES, ROUTER, compare, document
from tasks.studies.kept_folds import Job, keep, open_study, read_confidences

FORMAT = 1  # raised when the way a fold is fitted changes
GROUPINGS = ("image_group", "template")
VALIDATION_SHARE = 0.15
logger = logging.getLogger(__name__)


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


def fit_fold(study: Study, job: Job, folder: Path) -> None:
    """Fit one method on the other folds and keep its confidences of this one."""
    fit = fit_router_fold if job.method == ROUTER else fit_baseline_fold
    rows = np.flatnonzero(outer_folds(study.groups(job.grouping)) == job.fold)
    keep(
        job,
        folder,
        queries=study.table["query_id"].gather(rows).to_list(),
        vlms=study.labels.vlms,
        asked=~np.isnan(study.scored[rows]),
        confidences=fit(study, job),
    )


_loaded: dict[str, Study] = {}  # a worker's study, under "study"


def _start_worker(workspace: Path) -> None:
    """Each worker uses one thread and loads the tables once; SIGTERM unwinds it, so that no temporary file is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(workspace)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    _loaded["study"] = load_study()


def _run(job: Job, folder: Path) -> None:
    try:
        fit_fold(_loaded["study"], job, folder)
    except SystemExit:
        os._exit(143)  # the pool would send the exception back and give this worker the next job


def fingerprint(study: Study) -> dict[str, str]:
    """What the kept folds are made of: the code's format, the data, the encoders, and the router's settings.

    The data are both kinds of labels, the VLMs with their pools and profiles, and every column of the queries that a
    method or a table looks at; questions and pictures count by their bytes.
    """
    data = hashlib.sha256(np.ascontiguousarray(study.labels.correct).tobytes())
    data.update(np.ascontiguousarray(study.scored).tobytes())
    columns = ("query_id", "benchmark", "task", "answer_type", "question", "image_sha256", *GROUPINGS)
    vlms = (study.labels.vlms, study.labels.pools, study.labels.profiles)
    for texts in (*(study.table[column].to_list() for column in columns), study.table["choices"].to_list(), *vlms):
        data.update(json.dumps(texts).encode())
    used = (*study.settings.question_encoders, *study.settings.picture_encoders, study.settings.profile_encoder)
    return {
        "format": str(FORMAT),
        "data": data.hexdigest(),
        "encoders": json.dumps(
            {name: encoder.identity for name, encoder in describe_encoders(used).items()}, sort_keys=True
        ),
        "settings": json.dumps(dataclasses.asdict(study.settings), sort_keys=True),
    }


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
    """Fit what is missing, in processes of one thread each; every finished fold is kept at once.

    Raises:
        ArmsError: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    with (
        Progress(len(todo), "cross-fitting", "fit") as progress,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(workspace,)) as pool,
    ):
        try:
            with _ctrl_c_held_back():
                running = [pool.submit(_run, job, folder) for job in todo]
            for future in as_completed(running):
                future.result()
                progress.update()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ArmsError(
                    "a worker died, most likely for want of memory. Finished folds are kept; run the same command "
                    "again with fewer --workers."
                ) from None
            raise


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Workers that start in here never see a terminal's Ctrl-C; the parent sees it afterwards and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_scores(study: Study, grouping: str, method: str, seed: int, folder: Path) -> NDArray[np.float32]:
    """The kept folds of one method and seed as one matrix (N, K); NaN for pairs that were not asked."""
    folds = [Job(grouping=grouping, method=method, seed=seed, fold=fold) for fold in range(NUM_FOLDS)]
    return read_confidences(folds, folder, queries=study.table["query_id"].to_list(), vlms=study.labels.vlms)


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
            candidates = ~np.isnan(study.scored) & inside
            rows, without = pool_table(
                [by_confidence(ROUTER, "router", router, candidates)],
                baselines,
                labels=study.labels,
                scored=study.scored,
                rows=np.arange(study.table.height),
                inside=inside,
                benchmark=benchmark,
                group=study.groups(grouping),
                references=REFERENCES,
                draws=draws,
            )
            yield rows_frame(rows, grouping=grouping, pool=pool, without_candidate=without)


def study(arguments: argparse.Namespace) -> None:
    """Fit what is missing, then make the tables."""
    folder = arguments.output.resolve()
    if not (arguments.workspace / "params.yaml").exists():
        raise ConfigError(f"{arguments.workspace} is no workspace (no params.yaml there); run `make real` first.")
    workspace = arguments.workspace.resolve()
    os.chdir(workspace)
    loaded = load_study()
    open_study(folder, fingerprint(loaded), is_refit=arguments.refit)
    wanted = jobs(arguments.groupings, arguments.seeds)
    todo = [job for job in wanted if not job.path(folder).exists()]
    logger.info("%d of %d fits are kept already; %d to do", len(wanted) - len(todo), len(wanted), len(todo))
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
        temporary.write_text(document(parts), encoding="utf-8")


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
    add("--refit", action="store_true", help="remove all kept folds first; leave it out to go on after a stop")
    arguments = parser.parse_args()
    return run_command("crossfit", lambda: study(arguments))


if __name__ == "__main__":
    sys.exit(main())
