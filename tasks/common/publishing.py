"""What a train stage writes: the router, its metrics and curves, and what its networks say of queries they never saw.

models/<stage>/               config.json and weights.safetensors, or nothing-to-learn.json
held_out/<stage>.parquet      table `held_out`: confidences of networks that had not seen the query
metrics/<stage>.json          of the router, for `dvc metrics`
curves/<stage>.csv            one row per member and epoch, for `dvc plots`
"""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.fitting import FittedRouter
from arms_model.metrics import choose, exact_match, outcomes
from arms_model.metrics import expected_calibration_error as ece
from arms_model.router import sigmoid
from arms_model.storage import finite, save_router
from tasks.common.files import folder_written_whole, write_json, written_whole
from tasks.common.tables import SCHEMAS, write_table

CHECKPOINTS = Path(".arms/checkpoints")
MODELS, HELD_OUT = Path("models"), Path("held_out")
NOTHING = "nothing-to-learn.json"


def publish(
    stage: str, fitted: FittedRouter, *, query_ids: Sequence[str], correct: NDArray[np.float32], extra: dict[str, float]
) -> None:
    """Write what the module's text names, and drop the stage's checkpoints.

    Args:
        stage: the train stage's name.
        fitted: what came out.
        query_ids: N names of the rows.
        correct: (N, K) labels it was trained on; NaN where not shown.
        extra: further metrics.
    """
    router, labels = fitted.router, correct[fitted.rows]
    confidences, candidates = sigmoid(router.calibration.apply(fitted.logits)), ~np.isnan(labels)
    parameters = [p for m in (*router.members, *router.encoder_modules.values()) for p in m.parameters()]
    metrics: dict[str, Any] = {
        "num_vlms": len(router.config.vlms),
        "num_weights": sum(p.numel() for p in parameters),
        "epochs": [len(history) for history in fitted.histories],
        "memory": None if router.memory is None else router.memory.described(),
        "validation_queries": int(candidates.any(1).sum()),
        "validation_em": finite(exact_match(outcomes(labels, choose(confidences, candidates)))),
        "validation_log_loss_uncalibrated": finite(router.calibration.log_loss_before),
        "validation_log_loss_in_sample": finite(router.calibration.log_loss_after),
        **{
            f"validation_{name}": finite(ece(labels[candidates], scores[candidates]))
            for name, scores in (("ece_uncalibrated", sigmoid(fitted.logits)), ("ece_in_sample", confidences))
        },
        **extra,
    }
    write_curves(stage, fitted.histories)
    write_json(Path("metrics") / f"{stage}.json", metrics)
    held_out = confidence_rows([query_ids[row] for row in fitted.rows], router.config.vlms, confidences)
    write_table(HELD_OUT / f"{stage}.parquet", held_out, "held_out")
    with folder_written_whole(MODELS / stage) as folder:
        save_router(router, folder)
    shutil.rmtree(CHECKPOINTS / stage, ignore_errors=True)


def publish_nothing(stage: str, reason: str) -> None:
    """The valid output of a new-pool stage without new VLMs (or without labels of them)."""
    write_table(HELD_OUT / f"{stage}.parquet", pl.DataFrame(schema=SCHEMAS["held_out"]), "held_out")
    with folder_written_whole(MODELS / stage) as folder:
        write_json(folder / NOTHING, {"reason": reason})
    write_curves(stage, [])
    write_json(Path("metrics") / f"{stage}.json", {"num_vlms": 0, "nothing_to_learn": reason})


def write_curves(stage: str, histories: Sequence[Sequence[dict[str, float]]]) -> None:
    """`curves/<stage>.csv`: one row per member and epoch."""
    columns = ("member", "epoch", "train_loss", "validation_loss", "learning_rate")
    with written_whole(Path("curves") / f"{stage}.csv") as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for member, history in enumerate(histories):
            writer.writerows({"member": member, **record} for record in history)


def confidence_rows(query_ids: Sequence[str], vlms: Sequence[str], confidences: NDArray[np.floating]) -> pl.DataFrame:
    """A matrix of confidences as rows query_id, vlm, confidence; entries without a number are left out.

    Args:
        query_ids: N names.
        vlms: K names.
        confidences: (N, K); NaN where there is none.
    """
    row, column = np.nonzero(~np.isnan(confidences))
    return pl.DataFrame(
        {
            "query_id": pl.Series(query_ids, dtype=pl.String)[row],
            "vlm": pl.Series(vlms, dtype=pl.String)[column],
            "confidence": confidences[row, column].astype(np.float32),
        }
    )
