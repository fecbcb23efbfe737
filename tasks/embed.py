"""Stage `embed`: questions and pictures to vectors; only what the vector store lacks is encoded.

Reads `queries/` and the section `embed` of params.yaml. Writes for this query set:

    embed/questions.safetensors   {encoder's name: (num_queries, width) float32}, rows sorted by query_id
    embed/pictures.safetensors    {encoder's name: (num_pictures, width) float32}, one row per distinct picture file
    embed/index.parquet           query_id, question_row i32, picture_row i32; sorted by query_id
    embed/encoders.json           {encoder's name: {modality, identity, width, settings}}

Vectors of new items go to the store (`tasks.common.vectors`) in shards while the work runs, so a stopped run goes on
where it was. Pictures are read, checked against their sha256 and decoded in threads while the encoders run; a few
batches wait in memory, never the whole set. A picture that several encoders lack is decoded once.

Run: `python -m tasks.embed`, or `dvc repro embed`.
"""

import dataclasses
import hashlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arms_model.encoders.build import EncoderSettings, build
from arms_model.encoders.protocol import Encoder, Modality
from arms_model.encoders.question_text import question_text
from arms_model.errors import DataError
from arms_model.pictures import DEFAULT_MAX_PIXELS, decode_picture, read_bytes
from arms_model.progress import Progress
from tasks.common.files import folder_written_whole, write_json
from tasks.common.params import load_section
from tasks.common.stage import run_stage
from tasks.common.tables import read_table, write_parquet
from tasks.common.vectors import STORE, VectorStore

logger = logging.getLogger(__name__)

QUERIES = Path("queries/queries.parquet")
IMAGES = Path("queries/images")
OUTPUT = Path("embed")
_SHARD = 512  # vectors per shard: what a kill can lose


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Section `embed`.

    Attributes:
        questions: encoders of the question text, by a name that the train stages use.
        pictures: encoders of the picture, likewise.
        batch_size: items an encoder gets at once.
        max_pixels: pictures with more pixels are refused.
    """

    questions: dict[str, EncoderSettings]
    pictures: dict[str, EncoderSettings]
    batch_size: int = 32
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least 1")
        if both := sorted(set(self.questions) & set(self.pictures)):
            raise ValueError(f"encoder name '{both[0]}' stands under questions and pictures; give each its own")
        _refuse_wrong_modality(self.questions, "question")
        _refuse_wrong_modality(self.pictures, "picture")


def _refuse_wrong_modality(encoders: dict[str, EncoderSettings], modality: Modality) -> None:
    if not encoders:
        raise ValueError(f"no encoder under {modality}s; name at least one")
    for name, settings in encoders.items():
        if settings.modality != modality:
            raise ValueError(f"{modality}s.{name}: kind '{settings.kind}' encodes {settings.modality}s; move it there")


@dataclass(frozen=True)
class Item:
    """One thing to encode: `key` is the sha256 of its content, `name` what error texts call it."""

    key: str
    name: str
    load: Callable[[], Any]


@dataclass
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
        for item, is_finite in zip(items, np.isfinite(vectors).all(axis=1), strict=True):
            if not is_finite:
                raise DataError(
                    f"encoder '{self.name}' gave numbers that are not finite for {item.name}; expected finite vectors. "
                    "Drop the query, or choose another encoder."
                )
        self.keys += [item.key for item in items]
        self.vectors.append(vectors)

    def _write(self) -> None:
        if self.keys:
            self.store.add(self.keys, np.concatenate(self.vectors))
        self.keys, self.vectors = [], []


def question_items(queries: pl.DataFrame) -> list[Item]:
    """The question of each query, as encoders see it.

    Args:
        queries: table `queries`.

    Returns:
        One item per row, in the rows' order; equal texts have equal keys.
    """
    rows = queries.select("query_id", "question", "choices").iter_rows()
    return [_question_item(query_id, question_text(question, choices)) for query_id, question, choices in rows]


def _question_item(query_id: str, text: str) -> Item:
    return Item(hashlib.sha256(text.encode()).hexdigest(), f"the question of query {query_id}", lambda: text)


def picture_items(queries: pl.DataFrame, *, images: Path, max_pixels: int) -> list[Item]:
    """Each distinct picture of the queries.

    Args:
        queries: table `queries`.
        images: the folder that column `image` is relative to.
        max_pixels: pictures with more pixels are refused when they are loaded.

    Returns:
        One item per distinct file content, sorted by its sha256.
    """
    distinct = (
        queries.select("image_sha256", "image").sort("image_sha256", "image").unique("image_sha256", keep="first")
    )
    return [_picture_item(key, images / image, max_pixels) for key, image in distinct.sort("image_sha256").iter_rows()]


def _picture_item(key: str, path: Path, max_pixels: int) -> Item:
    def load() -> Any:
        data = read_bytes(path)
        found = hashlib.sha256(data).hexdigest()
        picture = decode_picture(data, name=str(path), max_pixels=max_pixels)
        if found != key:
            raise DataError(
                f"picture {path} has sha256 {found}, but its query says {key}; run stage `queries` again to take it anew."
            )
        return picture

    return Item(key, f"picture {path}", load)


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
            for item, prepared in _prepared_ahead(work, ahead=4 * max(lane.batch_size for lane in lanes)):
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
) -> Iterator[tuple[Item, list[tuple[Lane, Any]]]]:
    """Load and prepare in threads, in order, at most `ahead` items waiting."""

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


def open_lanes(encoders: dict[str, EncoderSettings], *, batch_size: int, store: Path) -> list[Lane]:
    """Build the encoders, sorted by name, each with its part of the store.

    Raises:
        ConfigError: see `arms_model.encoders.build.build`.
        StorageError: weights or shards that are not what they should be.
    """
    lanes = []
    for name, settings in sorted(encoders.items()):
        encoder = build(settings)
        lanes.append(
            Lane(name, encoder, VectorStore(store, identity=encoder.identity, width=encoder.width), batch_size)
        )
    return lanes


def seal(
    folder: Path,
    *,
    queries: pl.DataFrame,
    questions: list[Item],
    pictures: list[Item],
    lanes: list[Lane],
    settings: dict[str, EncoderSettings],
) -> None:
    """Write this query set's vectors out of the stores; the same content gives the same bytes.

    Args:
        folder: where the four files go.
        queries: table `queries`, sorted by query_id.
        questions: one item per query, in the same order.
        pictures: one item per distinct picture.
        lanes: the encoders with their stores.
        settings: the encoders' settings by name.
    """
    for modality, items in (("question", questions), ("picture", pictures)):
        keys = [item.key for item in items]
        tensors = {lane.name: lane.store.read(keys) for lane in lanes if lane.encoder.modality == modality}
        save_file(tensors, folder / f"{modality}s.safetensors")
    row_of = {item.key: row for row, item in enumerate(pictures)}
    index = pl.DataFrame(
        {
            "query_id": queries["query_id"],
            "question_row": range(queries.height),
            "picture_row": [row_of[key] for key in queries["image_sha256"]],
        },
        schema={"query_id": pl.String, "question_row": pl.Int32, "picture_row": pl.Int32},
    )
    write_parquet(folder / "index.parquet", index)
    write_json(folder / "encoders.json", {lane.name: _described(lane, settings[lane.name]) for lane in lanes})


def _described(lane: Lane, settings: EncoderSettings) -> dict[str, Any]:
    given = {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}
    encoder = lane.encoder
    return {"modality": encoder.modality, "identity": encoder.identity, "width": encoder.width, "settings": given}


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section("embed", EmbedSettings)
    queries = read_table(QUERIES, "queries").sort("query_id")
    questions = question_items(queries)
    pictures = picture_items(queries, images=IMAGES, max_pixels=settings.max_pixels)
    question_lanes = open_lanes(settings.questions, batch_size=settings.batch_size, store=STORE)
    picture_lanes = open_lanes(settings.pictures, batch_size=settings.batch_size, store=STORE)
    # By length, so that texts of a batch need little padding; then by key, so that batches do not depend on the rows' order.
    by_length = sorted(questions, key=lambda item: (len(item.load()), item.key))
    encode_missing(by_length, question_lanes, what="question")
    encode_missing(pictures, picture_lanes, what="picture")
    with folder_written_whole(OUTPUT) as folder:
        seal(
            folder,
            queries=queries,
            questions=questions,
            pictures=pictures,
            lanes=[*question_lanes, *picture_lanes],
            settings=settings.questions | settings.pictures,
        )


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage("embed", body)


if __name__ == "__main__":
    sys.exit(main())
