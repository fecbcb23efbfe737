"""Both batchings see the same pairs, once each, in an order that follows from the seed."""

import pytest
import torch

from arms_model.batches import epoch_batches, labelled_pairs, num_batches

NAN = float("nan")
CORRECT = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN], [0.0, 1.0, NAN], [1.0, 1.0, 1.0]])


def test_labelled_pairs_are_those_with_a_label_among_the_rows() -> None:
    pairs = labelled_pairs(CORRECT, torch.tensor([2, 0]))
    assert pairs.tolist() == [[2, 0], [2, 1], [0, 0], [0, 2]]


def test_by_pair_covers_every_labelled_pair_once() -> None:
    rows = torch.tensor([0, 2, 3])
    batches = list(epoch_batches(CORRECT, rows, batching="by_pair", batch_size=2, seed=0))
    seen = sorted((q, k) for b in batches for q, k in zip(b.queries.tolist(), b.vlms.tolist(), strict=True))
    assert seen == [(0, 0), (0, 2), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert len(batches) == num_batches(CORRECT, rows, batching="by_pair", batch_size=2) == 4


def test_by_query_covers_every_row_once() -> None:
    rows = torch.tensor([0, 2, 3])
    batches = list(epoch_batches(CORRECT, rows, batching="by_query", batch_size=2, seed=0))
    assert sorted(q for b in batches for q in b.queries.tolist()) == [0, 2, 3]
    assert len(batches) == num_batches(CORRECT, rows, batching="by_query", batch_size=2) == 2


@pytest.mark.parametrize("batching", ["by_query", "by_pair"])
def test_order_follows_from_the_seed(batching: str) -> None:
    def order(seed: int) -> list[int]:
        rows = torch.arange(50)
        correct = torch.ones(50, 2)
        return [
            q
            for b in epoch_batches(correct, rows, batching=batching, batch_size=7, seed=seed)
            for q in b.queries.tolist()
        ]

    assert order(1) == order(1)
    assert order(1) != order(2)
