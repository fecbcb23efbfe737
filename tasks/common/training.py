"""Training from fresh weights over one pool: what `train_base` and `train_independent` do, each on its own pool."""

import logging

import torch

from arms_model.errors import DataError
from arms_model.fitting import fit_router
from arms_model.training import TrainingData
from tasks.common.dataset import groups_of, load_labels, load_queries, load_splits
from tasks.common.invariants.training import hold_filtered
from tasks.common.params import load_group_by
from tasks.common.publishing import CHECKPOINTS, publish, publish_nothing
from tasks.common.routers import (
    RouterSettings,
    make_config,
    make_inputs,
    training_rows,
    use_one_thread_unless_encoders_train,
    validation_rows,
)
from tasks.common.streaming import streamed

logger = logging.getLogger(__name__)


def train_from_scratch(stage: str, pool: str, settings: RouterSettings, *, seed: int) -> None:
    """Train a router on the labels of `pool` and publish it as `models/<stage>/`.

    Raises:
        DataError: pool `base` has no labelled training query, or a table is broken.
        ConfigError: a checkpoint of another configuration, an unknown encoder.
    """
    use_one_thread_unless_encoders_train(settings.trainable_encoders)
    queries = load_queries()
    labels = load_labels(queries, [pool])
    splits = load_splits(queries)
    rows = training_rows(labels.correct, splits, drop_unanswered=settings.drop_unanswered)
    if not len(rows):
        reason = f"pool '{pool}' has {len(labels.vlms)} VLMs and no labelled query in split train"
        if pool == "base":
            raise DataError(f"{reason}: look at label/base.parquet, the split shares and drop_unanswered.")
        logger.info("%s: nothing to learn", reason)
        return publish_nothing(stage, reason)
    if settings.drop_unanswered:
        hold_filtered(stage, queries["query_id"].to_list(), labels.correct, rows.numpy())
    with streamed(stage) as callbacks:  # publishing too: what the last epochs were reaches MLflow meanwhile
        inputs = make_inputs(
            queries,
            labels.profiles,
            question_encoders=settings.question_encoders,
            picture_encoders=settings.picture_encoders,
            profile_encoder=settings.profile_encoder,
            trainable_encoders=settings.trainable_encoders,
        )
        data = TrainingData(
            question=inputs.question,
            picture=inputs.picture,
            profiles=inputs.profiles,
            correct=torch.from_numpy(labels.correct),
            train=rows,
            validation=validation_rows(labels.correct, splits),
            groups=groups_of(queries, load_group_by()),
        )
        fitted = fit_router(
            make_config(settings, labels, inputs),
            data,
            training=settings.training,
            calibration=settings.calibration,
            memory=settings.memory,
            seed=seed,
            checkpoints=CHECKPOINTS / stage,
            what=stage,
            callbacks=callbacks,
        )
        extra = {"train_queries": float(len(rows)), "train_pairs": float((labels.correct[rows.numpy()] >= 0).sum())}
        return publish(stage, fitted, query_ids=queries["query_id"].to_list(), correct=labels.correct, extra=extra)
