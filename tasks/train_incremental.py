"""Stage `train_incremental`: the base router learns the new VLMs and becomes one router over all (equation 7).

It goes on from `models/train_base/` on the new VLMs' samples only; a `replay_fraction` of the base pool's training
queries may be mixed in against forgetting. Which groups of weights move is a parameter. **Decision**: encoders stay, so
the base profiles' vectors stay valid. Writes `models/train_incremental/`, `metrics/train_incremental.json`,
`curves/train_incremental.csv`; without new VLMs it writes that there is nothing to learn.

Source: arXiv 2606.08970, section 4.3. Run: `python -m tasks.train_incremental`, or `dvc repro train_incremental`.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from arms_model.calibration import CalibrationSettings
from arms_model.fitting import fit_router
from arms_model.folds import share_of
from arms_model.memory import MemorySettings
from arms_model.storage import load_router
from arms_model.training import TrainingData, TrainingSettings
from tasks.common.dataset import Labels, groups_of, load_labels, load_queries, load_splits
from tasks.common.invariants.training import hold_filtered
from tasks.common.params import load_group_by, load_section, load_seed
from tasks.common.publishing import CHECKPOINTS, publish, publish_nothing
from tasks.common.routers import (
    frozen,
    trained_inputs,
    training_rows,
    use_one_thread_unless_encoders_train,
    validation_rows,
)
from tasks.common.stage import run_stage
from tasks.common.streaming import streamed

STAGE = "train_incremental"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IncrementalSettings:
    """Section `train_incremental`. The network is the base router's.

    Attributes:
        replay_fraction: share of the base pool's training queries whose base labels are trained on too (beyond the
            paper, which takes none).
        drop_unanswered: leave queries that no new VLM answers out of the new VLMs' training rows, and of those that are
            replayed the queries that no base VLM answers.
        training: see `TrainingSettings`.
        calibration: see `CalibrationSettings`.
    """

    replay_fraction: float = 0.0
    drop_unanswered: bool = False
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(moving=("gate", "experts", "head")))
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 0 <= self.replay_fraction <= 1:
            raise ValueError(f"replay_fraction must lie in [0, 1], got {self.replay_fraction}")
        if {"question_encoder", "picture_encoder"} & set(self.training.moving):
            raise ValueError(
                "training.moving must leave the encoders out: base profiles' vectors would lose their meaning"
            )


def incremental_labels(labels: Labels, query_ids: list[str], *, replay_fraction: float) -> NDArray[np.float32]:
    """Labels to train on: all of the new VLMs, and those of the base VLMs for a share of the queries drawn by hash.

    Args:
        labels: of both pools.
        query_ids: N, rows of `labels.correct`.
        replay_fraction: the share.

    Returns:
        (N, K); what is held back is NaN.
    """
    shown = labels.correct.copy()
    replayed = np.asarray([share_of(query_id, salt="replay") < replay_fraction for query_id in query_ids])
    is_base = np.asarray(labels.pools) == "base"
    shown[np.ix_(~replayed, is_base)] = np.nan
    return shown


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section(STAGE, IncrementalSettings)
    use_one_thread_unless_encoders_train(())  # encoders stay here
    queries = load_queries()
    labels = load_labels(queries, ["base", "new"])
    splits = load_splits(queries)
    new_only = incremental_labels(labels, queries["query_id"].to_list(), replay_fraction=0.0)
    rows = training_rows(new_only, splits, drop_unanswered=settings.drop_unanswered)
    if not len(rows):
        num_new = labels.pools.count("new")
        reason = f"pool 'new' has {num_new} VLMs and no labelled query in split train"
        logger.info("%s: nothing to learn", reason)
        return publish_nothing(STAGE, reason)
    with streamed(STAGE) as callbacks:
        base = load_router(Path("models/train_base"))
        inputs = frozen(trained_inputs(base, queries, labels.profiles))
        shown = incremental_labels(labels, queries["query_id"].to_list(), replay_fraction=settings.replay_fraction)
        dropped = np.setdiff1d(np.flatnonzero(splits == "train"), rows.numpy())
        shown[np.ix_(dropped, np.asarray(labels.pools) == "new")] = np.nan  # a replayed query must not bring them back
        replayable = np.where(np.isnan(new_only), shown, np.nan)
        replayed = training_rows(replayable, splits, drop_unanswered=settings.drop_unanswered)
        data = TrainingData(
            question=inputs.question,
            picture=inputs.picture,
            profiles=inputs.profiles,
            correct=torch.from_numpy(shown),
            train=torch.unique(torch.cat([rows, replayed])),
            validation=validation_rows(new_only, splits),
            groups=groups_of(queries, load_group_by()),
        )
        if settings.drop_unanswered:
            hold_filtered(STAGE, queries["query_id"].to_list(), shown, data.train.numpy())
        fitted = fit_router(
            dataclasses.replace(base.config, vlms=labels.vlms, profiles=labels.profiles),
            data,
            training=settings.training,
            calibration=settings.calibration,
            memory=None if base.memory is None else MemorySettings(),
            seed=load_seed(),
            start=base,
            checkpoints=CHECKPOINTS / STAGE,
            what=STAGE,
            callbacks=callbacks,
        )
        extra = {"train_queries": float(len(rows)), "replayed_queries": float(len(replayed))}
        return publish(STAGE, fitted, query_ids=queries["query_id"].to_list(), correct=shown, extra=extra)


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage(STAGE, body)


if __name__ == "__main__":
    sys.exit(main())
