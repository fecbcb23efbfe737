"""Recorded benchmarks: a query set and what VLMs answered, as files that somebody else wrote.

A recorded folder holds

    queries.parquet    the table `queries`; template, licence and source_image_sha256 may be missing; image is a path
                       under the folder that begins with images/
    outputs.parquet    query_id, vlm, output (null where only right or wrong was kept), reference_correct; and where
                       known the other columns of table `collect` (error, latency_s, cost_usd ...)
    images/            the pictures

Nothing in it is trusted: columns, types, keys, picture files and their hashes are checked as they are read.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import polars as pl

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import check_header
from tasks.common.tables import COLLECT_OPTIONAL, SCHEMAS, check_table, read_parquet

VARIABLE = "ARMS_REAL_DATA"
QUERIES, OUTPUTS, IMAGES = "queries.parquet", "outputs.parquet", "images"
SOURCE_FILES = {"queries": (QUERIES, IMAGES), "collect": (OUTPUTS,)}  # what each stage reads of the folder
_OPTIONAL_IN_QUERIES = ("image_group", "template", "licence", "source_image_sha256")
_NUM_NAMED = 20  # rows at fault that a message names


def source_folder(folder: str | None, *, where: str) -> Path:
    """The recorded folder that `folder` names, or the environment variable ARMS_REAL_DATA where it is None.

    Args:
        folder: a path, relative to the current folder or absolute, or None.
        where: the setting's path, for the message.

    Returns:
        The absolute path of a folder that exists.

    Raises:
        ConfigError: neither is set, or there is no such folder.
    """
    named_by = where if folder else f"the environment variable {VARIABLE}"
    name = folder or os.environ.get(VARIABLE)
    if not name:
        raise ConfigError(
            f"no recorded outputs named: {where} is empty and {VARIABLE} is not set. Set {VARIABLE} to a folder "
            f"that holds {QUERIES}, {OUTPUTS} and {IMAGES}/, or write its path into {where} of params.yaml."
        )
    path = Path(name).resolve()
    if not path.is_dir():
        raise ConfigError(f"{named_by} names {name}, but there is no such folder; expected one that holds {QUERIES}.")
    return path


def read_queries(folder: Path) -> pl.DataFrame:
    """The recorded query set, as table `queries`; `image` is still relative to `folder`.

    Raises:
        DataError: the file breaks the contract.
    """
    return checked_queries(read_parquet(folder / QUERIES), where=str(folder / QUERIES))


def checked_queries(frame: pl.DataFrame, *, where: str) -> pl.DataFrame:
    """Table `queries` from one whose optional columns may be missing; `image` begins with `images/`.

    An empty `image_group` becomes the picture's own hash, an empty `template` the image group.

    Args:
        frame: the table as somebody else wrote it.
        where: its file, for the message.

    Raises:
        DataError: it breaks the contract.
    """
    frame = _with_columns(frame, _OPTIONAL_IN_QUERIES, table="queries")
    frame = _filled(frame, "image_group", "image_sha256")
    frame = _filled(frame, "template", "image_group")
    check_table(frame, "queries", where)
    outside = frame.filter(~pl.col("image").map_elements(_is_under_images, return_dtype=pl.Boolean))
    _refuse(
        outside,
        f"{where}: column 'image' must be a path that begins with '{IMAGES}/' and never leaves it; correct",
        "image",
    )
    return frame.select(*SCHEMAS["queries"])


def read_outputs(folder: Path) -> pl.DataFrame:
    """What the recorded VLMs answered, as table `collect`, all VLMs together.

    Raises:
        DataError: see `checked_outputs`.
    """
    return checked_outputs(read_parquet(folder / OUTPUTS), where=str(folder / OUTPUTS))


def checked_outputs(frame: pl.DataFrame, *, where: str) -> pl.DataFrame:
    """Table `collect` from outputs whose optional columns may be missing.

    Args:
        frame: the table as somebody else wrote it; the label is its column `reference_correct`.
        where: its file, for the message.

    Raises:
        DataError: it breaks the contract, a (query, VLM) stands twice, an answer has neither an output nor a label nor
            an error, or an error is labelled correct.
    """
    if "reference_correct" not in frame.columns:
        raise DataError(
            f"{where}: column 'reference_correct' is missing; it holds true, false or null for each answer."
        )
    if "imported_correct" in frame.columns:
        raise DataError(f"{where}: has 'imported_correct'; here that column is called 'reference_correct', drop one.")
    frame = _with_columns(frame.rename({"reference_correct": "imported_correct"}), COLLECT_OPTIONAL, table="collect")
    check_table(frame, "collect", where)
    empty = frame.filter(pl.all_horizontal(pl.col("output", "imported_correct", "error").is_null()))
    _refuse(empty, f"{where}: neither output nor reference_correct nor error; fill one or drop", "query_id", "vlm")
    contradiction = frame.filter(pl.col("error").is_not_null() & pl.col("imported_correct"))
    _refuse(contradiction, f"{where}: an error is labelled correct; correct", "query_id", "vlm")
    return frame.select(*SCHEMAS["collect"])


def read_picture(folder: Path, image: str, *, sha256: str, max_pixels: int) -> bytes:
    """A recorded picture's bytes, once its file, header and hash are checked; it is not decoded.

    Raises:
        DataError: no such file, an empty one, no picture, too many pixels, or another hash than recorded.
    """
    path = folder / image
    check_header(path, max_pixels=max_pixels)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path}: sha256 is {found[:12]}..., but {QUERIES} says {sha256[:12]}...; the picture was changed or cut."
        )
    return content


def named(rows: Iterable[object], count: int) -> str:
    """The first rows at fault and how many there are in all, for a message."""
    first = [str(row) for _, row in zip(range(_NUM_NAMED), rows, strict=False)]
    return f"{count} in all, first: " + "; ".join(first)


def _refuse(rows: pl.DataFrame, message: str, *columns: str) -> None:
    """Raise DataError where `rows` is not empty."""
    if rows.height:
        shown = dict.fromkeys((*[c for c in ("query_id",) if c in rows.columns], *columns))
        raise DataError(f"{message} these rows: {named(rows.select(*shown).iter_rows(), rows.height)}.")


def _with_columns(frame: pl.DataFrame, optional: tuple[str, ...], *, table: str) -> pl.DataFrame:
    """Add the missing ones of `optional` as nulls; a column of nothing but nulls takes the contract's type."""
    missing = [pl.lit(None, SCHEMAS[table][name]).alias(name) for name in optional if name not in frame.columns]
    frame = frame.with_columns(missing)
    untyped = [name for name, dtype in frame.schema.items() if dtype == pl.Null and name in SCHEMAS[table]]
    return frame.with_columns(pl.col(name).cast(SCHEMAS[table][name]) for name in untyped)


def _filled(frame: pl.DataFrame, column: str, source: str) -> pl.DataFrame:
    """Null or empty values of `column` replaced by `source`; what is mistyped is left to the contract."""
    if source not in frame.columns or frame.schema[column] != pl.String():
        return frame
    value = pl.col(column)
    return frame.with_columns(
        pl.when(value.is_null() | (value == "")).then(pl.col(source)).otherwise(value).alias(column)
    )


def _is_under_images(image: str) -> bool:
    parts = PurePosixPath(image).parts
    return len(parts) > 1 and parts[0] == IMAGES and ".." not in parts and "\\" not in image
