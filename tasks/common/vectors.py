"""The vector store: what encoders gave, kept by content outside DVC's outputs, so that nothing is encoded twice.

DVC deletes a stage's outputs before it runs the stage; this store lies beside them and outlives them. One folder per
encoder, named by the sha256 of its identity, holds shards: safetensors files of a few hundred vectors with their
keys. A key is the sha256 of what was encoded (the picture file's bytes, the question text as the encoder sees it).

- Shards are written whole and named by the sha256 of their own content: a kill loses at most the shard in progress, two
  processes cannot overwrite each other, and a damaged shard is recognised, reported and set aside as `.corrupt`.
- The same key twice is normal (two processes at once): one of the vectors is taken, always the same one.
- A width that is not the encoder's is refused, never cut.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from arms_model.errors import DataError, StorageError
from tasks.common.files import write_json, written_whole

logger = logging.getLogger(__name__)

STORE = Path(".arms/vectors")


class VectorStore:
    """The vectors of one encoder, by key."""

    def __init__(self, root: Path, *, identity: str, width: int) -> None:
        """Open the encoder's folder and read its shards' keys.

        Args:
            root: the store's folder, holding one folder per encoder.
            identity: the encoder's identity.
            width: numbers per vector.

        Raises:
            StorageError: a shard holds vectors of another width.
        """
        self._folder = root / hashlib.sha256(identity.encode()).hexdigest()
        self._identity, self._width = identity, width
        self._places: dict[str, tuple[Path, int]] = {}  # key: shard and row
        for shard in sorted(self._folder.glob("*.safetensors")):
            keys = self._sound_keys(shard)
            if keys is None:
                self._set_aside(shard)
            else:
                self._remember(shard, keys)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep vectors as one more shard.

        Args:
            keys: the sha256 of what was encoded, hex, n of them.
            vectors: (n, width) float32.

        Raises:
            DataError: another number or width of vectors, or a number that is not finite.
            StorageError: the disk is full.
        """
        if not keys:
            return
        if vectors.shape != (len(keys), self._width):
            raise DataError(
                f"vectors of shape {vectors.shape} came for {len(keys)} items of encoder {self._identity}, expected "
                f"({len(keys)}, {self._width}); the encoder's width and its vectors must agree."
            )
        if not np.isfinite(vectors).all():
            raise DataError(f"encoder {self._identity} gave numbers that are not finite; nothing of them was kept.")
        packed = np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(len(keys), 32)
        content = save({"keys": packed, "vectors": np.ascontiguousarray(vectors, dtype=np.float32)})
        shard = self._folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        if not (self._folder / "encoder.json").exists():
            write_json(self._folder / "encoder.json", {"identity": self._identity, "width": self._width})
        with written_whole(shard) as temporary:
            temporary.write_bytes(content)
        self._remember(shard, list(keys))

    def read(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of `keys`, in their order.

        Returns:
            Vectors, (len(keys), width) float32.

        Raises:
            StorageError: the store lacks a key.
        """
        lacking = [key for key in keys if key not in self._places]
        if lacking:
            raise StorageError(
                f"{self._folder} lacks {len(lacking)} of {len(keys)} vectors, first: {lacking[0]}; encode them first."
            )
        vectors = np.empty((len(keys), self._width), dtype=np.float32)
        wanted: dict[Path, list[tuple[int, int]]] = {}  # shard: positions in `keys`, rows in the shard
        for position, key in enumerate(keys):
            shard, row = self._places[key]
            wanted.setdefault(shard, []).append((position, row))
        for shard, places in wanted.items():
            positions, rows = zip(*places, strict=True)
            with safe_open(shard, framework="numpy") as opened:
                vectors[list(positions)] = opened.get_tensor("vectors")[list(rows)]
        return vectors

    def _remember(self, shard: Path, keys: Sequence[str]) -> None:
        for row, key in enumerate(keys):
            self._places.setdefault(key, (shard, row))

    def _sound_keys(self, shard: Path) -> list[str] | None:
        """A shard's keys; None where its content is not what its name says."""
        with shard.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != shard.stem:
                return None
        try:
            with safe_open(shard, framework="numpy") as opened:
                packed = opened.get_tensor("keys")
                shape = opened.get_slice("vectors").get_shape()
        except SafetensorError:
            return None
        if list(shape) != [len(packed), self._width]:
            raise StorageError(
                f"{shard} holds vectors of shape {tuple(shape)}, expected ({len(packed)}, {self._width}) for encoder "
                f"{self._identity}; vectors are never cut. Remove the folder {shard.parent}: its items are then "
                "encoded again."
            )
        return [row.tobytes().hex() for row in packed]

    def _set_aside(self, shard: Path) -> None:
        aside = shard.with_suffix(".corrupt")
        shard.replace(aside)
        logger.warning("%s is damaged; it was set aside as %s and its items are encoded again", shard, aside.name)
