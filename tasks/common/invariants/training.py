"""What must hold of a training set that is filtered as the paper's is. `tasks.common.gates` says how it is held."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.common.gates import Check, Invariant, hold, table_view, within

ANSWERED = Invariant(
    name="train_query_answered",
    sentence="Where unanswered queries are dropped, a VLM answers every training query rightly.",
    bounds="held where `drop_unanswered` is true",
    remedy="Report it: the filter let a query through.",
)
INVARIANTS = (ANSWERED,)


def hold_filtered(stage: str, query_ids: Sequence[str], correct: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    """Hold the invariant.

    Args:
        stage: the train stage's name.
        query_ids: N.
        correct: (N, K) 1 right, 0 wrong, NaN without a label.
        rows: those of the N that are trained on.

    Raises:
        DataError: no VLM answers a training query.
    """
    num_right = np.nansum(correct[rows], axis=1).astype(np.int64)
    chosen = pl.DataFrame({"query_id": [query_ids[row] for row in rows], "num_right": num_right})
    view = table_view("training queries", chosen, key=["query_id"])
    hold(stage, [Check(invariant=ANSWERED, rule=within("num_right", least=1), view=view)])
