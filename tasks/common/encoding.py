"""Encode what a vector store lacks: items are prepared in threads while the encoders run, vectors are kept in shards.

A few batches wait in memory, never the whole set. An item that several encoders lack is loaded once. A stopped run
loses at most the shards in progress, and the same command goes on from there.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
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


@dataclass(eq=False)
class Lane:
    """One encoder on its way: its store, and what waits for its next batch and its next shard."""

    name: str
    encoder: Encoder
    store: VectorStore
    batch_size: int
    prepared: list[tuple[Item, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    def put(self, item: Item, prepared: Any) -> None:
        """Take a prepared item; encode when a batch is full, write when a shard is full."""
        self.prepared.append((item, prepared))
        if len(self.prepared) == self.batch_size:
            self._encode()
        if len(self.keys) >= _SHARD:
            self._write()

    def finish(self) -> None:
        """Encode and write what still waits."""
        if self.prepared:
            self._encode()
        self._write()

    def _encode(self) -> None:
        items, batch = zip(*self.prepared, strict=True)
        self.prepared = []
        # The last batch is filled up, so that every item is computed in a batch of the same size.
        filled = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
        vectors = self.encoder.encode(filled)[: len(items)]  # (len(items), width)
        if (bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))).size:
            raise DataError(
                f"encoder '{self.name}' gave numbers that are not finite for {items[bad[0]].name}. "
                "Drop the query, or choose another encoder."
            )
        self.keys += [item.key for item in items]
        self.vectors.append(vectors)

    def _write(self) -> None:
        if self.keys:
            self.store.add(self.keys, np.concatenate(self.vectors))
        self.keys, self.vectors = [], []


def encode_missing(items: Iterable[Item], lanes: list[Lane], *, what: str) -> dict[str, int]:
    """Encode what the lanes' stores lack.

    Args:
        items: what is to be in the stores; equal keys are encoded once.
        lanes: one per encoder.
        what: `question` or `picture`, for progress and log.

    Returns:
        New vectors by encoder.

    Raises:
        DataError: a picture that cannot be used, or vectors that are not finite.
        StorageError: the disk is full.
    """
    distinct = {item.key: item for item in items}
    work = [(item, lacking) for item in distinct.values() if (lacking := [x for x in lanes if item.key not in x.store])]
    counts = {lane.name: sum(lane in lacking for _, lacking in work) for lane in lanes}
    if work:
        with Progress(len(work), f"encoding {what}s", what) as progress:
            ahead = 4 * max(lane.batch_size for lane in lanes)
            with contextlib.closing(_prepared_ahead(work, ahead=ahead)) as stream:
                for item, prepared in stream:
                    for lane, value in prepared:
                        lane.put(item, value)
                    progress.update()
            for lane in lanes:
                lane.finish()
    for name, count in counts.items():
        logger.info("%s: encoded %d new of %d %ss", name, count, len(distinct), what)
    return counts


def _prepared_ahead(
    work: list[tuple[Item, list[Lane]]], *, ahead: int
) -> Generator[tuple[Item, list[tuple[Lane, Any]]]]:
    """Items loaded and prepared by threads, in order, at most `ahead` of them waiting."""

    def prepare(item: Item, lacking: list[Lane]) -> list[tuple[Lane, Any]]:
        loaded = item.load()
        return [(lane, lane.encoder.prepare(loaded)) for lane in lacking]

    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    waiting: deque[tuple[Item, Future[list[tuple[Lane, Any]]]]] = deque()
    try:
        for item, lacking in work:
            waiting.append((item, pool.submit(prepare, item, lacking)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
