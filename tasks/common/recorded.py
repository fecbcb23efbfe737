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
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import polars as pl

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import check_header
from tasks.common.tables import COLLECT_OPTIONAL, SCHEMAS, check_table, read_parquet

VARIABLE = "ARMS_REAL_DATA"
QUERIES, OUTPUTS, IMAGES = "queries.parquet", "outputs.parquet", "images"
SOURCE_FILES = {"queries": (QUERIES, IMAGES), "collect": (OUTPUTS,)}  # what each stage reads of the folder
_OPTIONAL_IN_QUERIES = ("image_group", "template", "licence", "source_image_sha256")
_SUFFIXES = {
    b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif",
    b"MM\0*": "tif",
}  # fmt: skip
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


def inside(folder: Path, name: str) -> Path:
    """The file `name` under `folder`, which the user named and a data file points into.

    Args:
        folder: the folder.
        name: a path relative to it, or an absolute one that lies in it.

    Raises:
        DataError: the path leads out of `folder` by itself or by a link, is a URL, or there is no such file.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise DataError(f"{name[:200]!r} is a URL, and nothing is fetched here; download it and name the folder.")
    path = folder / name
    is_odd = not name or "\\" in name or "\0" in name or ".." in path.parts[len(folder.parts) :]
    try:
        if is_odd or PureWindowsPath(name).drive or not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{name[:200]!r} leads out of {folder}; it is not followed, put the file there.")
        if not path.is_file():
            raise DataError(f"{path} is missing; put the file there.")
    except (OSError, RuntimeError) as error:  # a name too long, a circle of links
        raise DataError(f"{name[:200]!r} cannot be a file in {folder} ({error}).") from None
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


def is_among(answer: str, choices: Sequence[str]) -> bool:
    """Whether a gold names one of the choices: by its text, or by its letter."""
    letter = answer.strip().upper()
    return answer in choices or (len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices))


def suffix(content: bytes) -> str:
    """What a picture file's name ends in, without the dot, by the content's first bytes."""
    return next((its for start, its in _SUFFIXES.items() if content.startswith(start)), "picture")


def encodable(value: Any) -> Any:
    """A value as JSON gives it, its texts without half surrogate pairs: JSON can carry them and UTF-8 cannot.

    They are real: an answer that was cut off at its token limit may end in half an emoji.
    """
    if isinstance(value, list):
        return [encodable(item) for item in value]
    if isinstance(value, dict):
        return {encodable(name): encodable(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


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
