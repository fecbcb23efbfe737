"""What one training step sees: queries with all their labels (`by_query`), or single pairs as in the paper (`by_pair`).

`by_query` runs the encoders and the experts once per query for all K labels; `by_pair` runs them once per label. On
the same pairs both give the same loss (a test holds it). An epoch's order follows from the seed and the epoch's number
alone, so a resumed run sees the batches that an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Batching = Literal["by_query", "by_pair"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one step.

    Attributes:
        queries: `by_query`: (B,) rows of distinct queries; `by_pair`: (P,) the query of each pair.
        vlms: None for `by_query` (all columns); (P,) columns for `by_pair`.
    """

    queries: Tensor
    vlms: Tensor | None


def epoch_batches(correct: Tensor, rows: Tensor, *, batching: Batching, batch_size: int, seed: int) -> Iterator[Batch]:
    """The batches of one epoch, in an order drawn from `seed`.

    Args:
        correct: (N, K) labels, NaN where not asked.
        rows: (M,) the queries to train on.
        batching: see the module's text.
        batch_size: queries (`by_query`) or pairs (`by_pair`) per batch.
        seed: of this epoch's order.

    Yields:
        Batches; the last one may be smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    if batching == "by_query":
        order = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(order), batch_size):
            yield Batch(queries=order[start : start + batch_size], vlms=None)
        return
    pairs = labelled_pairs(correct, rows)  # (P, 2)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        yield Batch(queries=part[:, 0], vlms=part[:, 1])


def labelled_pairs(correct: Tensor, rows: Tensor) -> Tensor:
    """(P, 2) int64: query row and VLM column of every label among `rows`."""
    where = torch.nonzero(~torch.isnan(correct[rows]))
    return torch.stack([rows[where[:, 0]], where[:, 1]], dim=1)


def num_batches(correct: Tensor, rows: Tensor, *, batching: Batching, batch_size: int) -> int:
    """Batches in one epoch."""
    total = len(rows) if batching == "by_query" else int((~torch.isnan(correct[rows])).sum())
    return -(-total // batch_size)
