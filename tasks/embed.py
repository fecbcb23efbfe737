"""Stage `embed`: questions and pictures to vectors; only what the vector store lacks is encoded.

Reads `queries/` and the section `embed` of params.yaml. Writes for this query set:

    embed/questions.safetensors   {encoder's name: (num_queries, width) float32}, rows sorted by query_id
    embed/pictures.safetensors    {encoder's name: (num_pictures, width) float32}, one row per distinct picture file
    embed/index.parquet           query_id, question_row i32, picture_row i32; sorted by query_id
    embed/encoders.json           {encoder's name: {modality, identity, width, settings}}
    gates/embed.json              what was held of them

Vectors of new items go to the store (`tasks.common.vectors`) in shards while the work runs, so a stopped run goes on
where it was. Pictures are read, checked against their sha256 and decoded in threads beside the encoders
(`tasks.common.encoding`).

Run: `python -m tasks.embed`, or `dvc repro embed`.
"""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.numpy import save

from arms_model.encoders.build import TRAINABLE, EncoderSettings, build
from arms_model.encoders.protocol import Encoder, Modality
from arms_model.encoders.question_text import question_text
from arms_model.errors import DataError
from arms_model.pictures import DEFAULT_MAX_PIXELS, decode_picture, read_bytes
from tasks.common.encoding import Item, StoredEncoder, encode_missing
from tasks.common.files import folder_written_whole, write_json
from tasks.common.gates import hold
from tasks.common.invariants.embed import checks
from tasks.common.params import NoBounds, load_gate, load_section
from tasks.common.stage import run_stage
from tasks.common.tables import read_table, write_table
from tasks.common.vectors import STORE, VectorStore

QUERIES = Path("queries/queries.parquet")
IMAGES = Path("queries/images")
OUTPUT = Path("embed")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Section `embed`.

    Attributes:
        questions: encoders of the question text, by a name that the train stages use.
        pictures: encoders of the picture, likewise.
        batch_size: items an encoder gets at once; above 16 a network's large maps cost more than they save (measured).
        max_pixels: pictures with more pixels are refused.
    """

    questions: dict[str, EncoderSettings]
    pictures: dict[str, EncoderSettings]
    batch_size: int = 16
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
            raise DataError(f"picture {path} has sha256 {found}, but its query says {key}; run stage `queries` again.")
        return picture

    return Item(key, f"picture {path}", load)


def open_encoders(encoders: dict[str, EncoderSettings], *, store: Path) -> list[StoredEncoder]:
    """Build the encoders, sorted by name, each with its part of the store.

    Raises:
        ConfigError: see `arms_model.encoders.build.build`.
        StorageError: weights or shards that are not what they should be.
    """
    built = [(name, build(settings)) for name, settings in sorted(encoders.items())]
    return [
        StoredEncoder(name, encoder, VectorStore(store, identity=encoder.identity, width=encoder.width))
        for name, encoder in built
    ]


def seal(
    folder: Path,
    *,
    queries: pl.DataFrame,
    questions: list[Item],
    pictures: list[Item],
    encoders: list[StoredEncoder],
    settings: dict[str, EncoderSettings],
) -> None:
    """Write this query set's vectors out of the stores; the same content gives the same bytes.

    Args:
        folder: where the four files go.
        queries: table `queries`, sorted by query_id.
        questions: one item per query, in the same order.
        pictures: one item per distinct picture.
        encoders: the encoders with their stores.
        settings: the encoders' settings by name.
    """
    for modality, items in (("question", questions), ("picture", pictures)):
        keys = [item.key for item in items]
        tensors = {x.name: x.store.read(keys) for x in encoders if x.encoder.modality == modality}
        (folder / f"{modality}s.safetensors").write_bytes(save(tensors))
    row_of = {item.key: row for row, item in enumerate(pictures)}
    index = pl.DataFrame(
        {
            "query_id": queries["query_id"],
            "question_row": range(queries.height),
            "picture_row": [row_of[key] for key in queries["image_sha256"]],
        },
        schema={"query_id": pl.String, "question_row": pl.Int32, "picture_row": pl.Int32},
    )
    write_table(folder / "index.parquet", index, "embed_index")
    write_json(folder / "encoders.json", {x.name: _described(x.encoder, settings[x.name]) for x in encoders})


def _described(encoder: Encoder, settings: EncoderSettings) -> dict[str, Any]:
    given = {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}
    return {"modality": encoder.modality, "identity": encoder.identity, "width": encoder.width, "settings": given}


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section("embed", EmbedSettings)
    load_gate("embed", NoBounds)
    queries = read_table(QUERIES, "queries").sort("query_id")
    questions = question_items(queries)
    pictures = picture_items(queries, images=IMAGES, max_pixels=settings.max_pixels)
    question_encoders = open_encoders(settings.questions, store=STORE)
    picture_encoders = open_encoders(settings.pictures, store=STORE)
    with _one_torch_thread(settings):
        # By length, so that a batch's texts need little padding; then by key, so that rows' order decides nothing.
        by_length = sorted(questions, key=lambda item: (len(item.load()), item.key))
        encode_missing(by_length, question_encoders, batch_size=settings.batch_size, what="question")
        encode_missing(pictures, picture_encoders, batch_size=settings.batch_size, what="picture")
    with folder_written_whole(OUTPUT) as folder:
        seal(
            folder,
            queries=queries,
            questions=questions,
            pictures=pictures,
            encoders=[*question_encoders, *picture_encoders],
            settings=settings.questions | settings.pictures,
        )
        findings = hold("embed", checks(folder, queries))
    findings.write()


@contextlib.contextmanager
def _one_torch_thread(settings: EmbedSettings) -> Iterator[None]:
    """Give torch one thread per batch (see `tasks.common.encoding`); it is not imported where nothing needs it."""
    kinds = {encoder.kind for encoder in (settings.questions | settings.pictures).values()}
    if kinds.isdisjoint(TRAINABLE):
        yield
        return
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage("embed", body)


if __name__ == "__main__":
    sys.exit(main())
