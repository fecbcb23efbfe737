"""Encode what the vector stores lack, batch by batch in threads, and keep the vectors in shards as they come.

Each thread takes a whole batch: it loads and prepares the items, then runs the encoders on them, so one thread's
decoding runs beside another's network. Only the batches at work are in memory, never the whole set. An item that
several encoders lack is loaded once. A stopped run loses at most the shards in progress, and the same command goes on
from there.

**Decision**: one torch thread per batch instead of all threads on one batch. Measured on two cores that others used
too: 8 ms a picture against 76 ms (threads of one batch wait for each other), and a vector's last bits do not depend on
the number of cores.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arms_model.encoders.protocol import Encoder
from arms_model.errors import DataError
from arms_model.progress import Progress
from tasks.common.vectors import VectorStore

logger = logging.getLogger(__name__)

_SHARD = 512  # vectors per shard: what a kill can lose


@dataclass(frozen=True)
class Item:
    """One thing to encode: `key` is the sha256 of its content, `name` what error texts call it."""

    key: str
    name: str
    load: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class StoredEncoder:
    """An encoder under its name in params.yaml, with its part of the vector store."""

    name: str
    encoder: Encoder
    store: VectorStore


@dataclass(frozen=True, eq=False)
class _Batch:
    items: list[Item]
    encoders: list[StoredEncoder]


@dataclass
class _Shard:
    """Vectors of one encoder that wait to be written together."""

    store: VectorStore
    keys: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    def put(self, keys: list[str], vectors: NDArray[np.float32]) -> None:
        self.keys += keys
        self.vectors.append(vectors)
        if len(self.keys) >= _SHARD:
            self.write()

    def write(self) -> None:
        if self.keys:
            self.store.add(self.keys, np.concatenate(self.vectors))
        self.keys, self.vectors = [], []


def encode_missing(
    items: Iterable[Item], encoders: list[StoredEncoder], *, batch_size: int, what: str
) -> dict[str, int]:
    """Encode what the encoders' stores lack.

    Args:
        items: what is to be in the stores afterwards; equal keys are encoded once.
        encoders: the encoders, all of one modality.
        batch_size: items an encoder gets at once.
        what: `question` or `picture`, for progress and log.

    Returns:
        The number of new vectors by encoder.

    Raises:
        DataError: a picture that cannot be used, or vectors that are not finite.
        StorageError: the disk is full.
    """
    distinct = list({item.key: item for item in items}.values())
    batches = list(_batches(distinct, encoders, batch_size))
    counts = {encoder.name: sum(len(x.items) for x in batches if encoder in x.encoders) for encoder in encoders}
    if batches:
        _run(batches, {encoder.name: _Shard(encoder.store) for encoder in encoders}, batch_size=batch_size, what=what)
    for name, count in counts.items():
        logger.info("%s: encoded %d new of %d %ss", name, count, len(distinct), what)
    return counts


def _batches(items: list[Item], encoders: list[StoredEncoder], batch_size: int) -> Iterator[_Batch]:
    """Items that the same encoders lack, `batch_size` at a time, in their order."""
    groups: dict[tuple[str, ...], _Batch] = {}
    for item in items:
        lacking = [encoder for encoder in encoders if item.key not in encoder.store]
        if lacking:
            names = tuple(encoder.name for encoder in lacking)
            groups.setdefault(names, _Batch([], lacking)).items.append(item)
    for group in groups.values():
        for start in range(0, len(group.items), batch_size):
            yield _Batch(group.items[start : start + batch_size], group.encoders)


def _run(batches: list[_Batch], shards: dict[str, _Shard], *, batch_size: int, what: str) -> None:
    total = sum(len(batch.items) for batch in batches)
    with (
        Progress(total, f"encoding {what}s", what) as progress,
        contextlib.closing(_encoded_in_threads(batches, batch_size)) as stream,
    ):
        for batch, vectors in stream:
            for encoder, rows in zip(batch.encoders, vectors, strict=True):
                shards[encoder.name].put([item.key for item in batch.items], rows)
            progress.update(len(batch.items))
        for shard in shards.values():
            shard.write()


def _encoded_in_threads(batches: list[_Batch], batch_size: int) -> Generator[tuple[_Batch, list[NDArray[np.float32]]]]:
    """Each batch with its encoders' vectors, in order; few batches ahead of what is taken."""
    num_threads = _num_cores()
    pool = ThreadPoolExecutor(max_workers=num_threads)
    waiting: deque[tuple[_Batch, Future[list[NDArray[np.float32]]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_encode, batch, batch_size)))
            if len(waiting) > 2 * num_threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(batch: _Batch, batch_size: int) -> list[NDArray[np.float32]]:
    """Load the batch and run its encoders, (len(items), width) each."""
    prepared: list[list[Any]] = [[] for _ in batch.encoders]
    for item in batch.items:
        loaded = item.load()
        for position, encoder in enumerate(batch.encoders):
            prepared[position].append(encoder.encoder.prepare(loaded))
    vectors = []
    for encoder, ready in zip(batch.encoders, prepared, strict=True):
        # The last batch is filled up, so that every item is computed in a batch of the same size.
        filled = ready + [ready[-1]] * (batch_size - len(ready))
        rows = encoder.encoder.encode(filled)[: len(ready)]
        if (bad := np.flatnonzero(~np.isfinite(rows).all(axis=1))).size:
            raise DataError(
                f"encoder '{encoder.name}' gave numbers that are not finite for {batch.items[bad[0]].name}. "
                "Drop the query, or choose another encoder."
            )
        vectors.append(rows)
    return vectors


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
