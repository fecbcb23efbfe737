"""The served router in MLflow's own form (`pyfunc`), for people who load it by MLflow: `models:/arms-router@champion`.

MLflow copies this file beside the served folder ("models from code") and runs it to load the model; no pickle is made.
Our own loading (`arms_model.registry`) never runs it. Nothing in the library imports it.

Input columns: question, image (a file's bytes) or image_path, choices and candidates (lists of texts, may be left out).
Output columns: confidences (by VLM), vlm, reason.
"""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd

from arms_model.answering import Picture, ServedRouter
from arms_model.errors import DataError
from arms_model.served import load_served


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """The bridge from MLflow's tables to `ServedRouter.answer`."""

    _served: ServedRouter

    def load_context(self, context: Any) -> None:
        """Load the served folder, every file's hash checked."""
        self._served = load_served(Path(context.artifacts["served"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answers, one row a question; see the module's text for the columns."""
        rows = model_input.to_dict("records")
        answers = self._served.answer(
            [row["question"] for row in rows],
            [_picture(row, number) for number, row in enumerate(rows)],
            choices=[_texts(row.get("choices")) for row in rows],
            candidates=[_texts(row.get("candidates")) for row in rows],
        )
        return pd.DataFrame(
            {
                "confidences": [answer.confidences for answer in answers],
                "vlm": [answer.vlm for answer in answers],
                "reason": [answer.reason for answer in answers],
            }
        )


def _picture(row: dict[Any, Any], number: int) -> Picture:
    given: list[Picture] = []
    if isinstance(image := row.get("image"), bytes):
        given.append(image)
    if isinstance(path := row.get("image_path"), str):
        given.append(Path(path))
    if len(given) != 1:
        raise DataError(f"row {number} has {len(given)} pictures, expected one: fill column image or image_path.")
    return given[0]


def _texts(value: Any) -> list[str] | None:
    """A list from a cell that may be left out: None, or NaN as pandas fills it."""
    return None if value is None or isinstance(value, float) else list(value)


mlflow.models.set_model(ServedModel())
