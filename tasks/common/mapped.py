"""A query set or answers in a table of somebody's own: params say which column is what (`source: table`).

    queries:
      source: table
      table:
        file: questions.csv            # csv, tsv, parquet or jsonl
        columns: {query_id: id, question: prompt, answer: gold, choices: [a, b, c, d], image: picture}
        constants: {benchmark: mine, task: reading, language: en, answer_type: choice}
        images: pictures               # where the paths of column `picture` lie; left out where it holds the bytes

    collect:
      source: table
      table:
        file: answers.parquet
        columns: {query_id: id, vlm: model, output: response}

Columns of ours that may be mapped: QUERIES and OUTPUTS below; what `tasks/common/recorded.py` may leave out may be left
out here. In csv and tsv an empty cell is a missing value; `""` is an empty text. Paths are relative to the folder of
params.yaml. A picture is followed only inside `images`, and is copied under the hash of its bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import check_header
from arms_model.settings import nearest
from tasks.common import recorded
from tasks.common.tables import SCHEMAS, read_parquet, write_table

QUERIES = {name: dtype for name, dtype in SCHEMAS["queries"].items() if name != "image_sha256"}
OUTPUTS = {
    ("reference_correct" if name == "imported_correct" else name): dtype for name, dtype in SCHEMAS["collect"].items()
}
_NEEDED = {
    "queries": ("query_id", "benchmark", "task", "language", "question", "answer", "answer_type", "image"),
    "collect": ("query_id", "vlm"),
}
_KINDS = (".csv", ".tsv", ".parquet", ".jsonl")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NUM_NAMED = 5  # rows at fault that a message names
_SUFFIXES = {
    b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif",
    b"MM\0*": "tif",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableMapping:
    """`queries.table` or `collect.table`.

    Attributes:
        file: the table: csv, tsv, parquet or jsonl.
        columns: our column -> its column; for `choices` also a list of columns, one a choice.
        constants: our column -> one text for all rows.
        images: the folder that the picture paths lie under; None where the column holds the pictures' bytes.
        list_separator: what parts the choices where they stand in one text.
    """

    file: str
    columns: dict[str, str | list[str]]
    constants: dict[str, str] = field(default_factory=dict)
    images: str | None = None
    list_separator: str = "|"

    def __post_init__(self) -> None:
        if Path(self.file).suffix.lower() not in _KINDS:
            raise ValueError(f"file must end in {', '.join(_KINDS)}, not {self.file!r}")
        if both := sorted(set(self.columns) & set(self.constants)):
            raise ValueError(f"{both[0]} is among columns and constants; name it once")
        if lists := [name for name, its in self.columns.items() if isinstance(its, list) and name != "choices"]:
            raise ValueError(f"columns.{lists[0]} must name one column; only choices may name several")
        if not self.list_separator:
            raise ValueError("list_separator may not be empty")


def read_outputs(mapping: TableMapping) -> pl.DataFrame:
    """What VLMs answered, as table `collect`, all VLMs together.

    Args:
        mapping: `collect.table`.

    Raises:
        ConfigError: the file or a column that params name is not there, or they name no label, output or error.
        DataError: the file is damaged, a value cannot be read as what it should be, or `recorded.checked_outputs`.
    """
    _check_keys(mapping, OUTPUTS, stage="collect")
    if not {"output", "reference_correct", "error"} & {*mapping.columns, *mapping.constants}:
        raise ConfigError("collect.table.columns: map at least one of output, reference_correct and error.")
    frame = _mapped(mapping, OUTPUTS, stage="collect")
    missing = [pl.lit(None, OUTPUTS[name]).alias(name) for name in OUTPUTS if name not in frame.columns]
    return recorded.checked_outputs(frame.with_columns(missing), where=mapping.file)


def write_query_set(mapping: TableMapping, target: Path, *, max_pixels: int) -> pl.DataFrame:
    """Copy a query set and its pictures into `target`, as `tasks.queries.write_query_set` does a recorded one.

    Args:
        mapping: `queries.table`.
        target: an empty folder.
        max_pixels: a picture with more is refused from its header.

    Returns:
        The table `queries` as written; `image` is relative to `target/images`.

    Raises:
        ConfigError: the file, the folder of pictures or a column that params name is not there.
        DataError: the file is damaged, breaks the contract, or pictures are missing or broken; rows are named.
    """
    _check_keys(mapping, QUERIES, stage="queries")
    frame = _mapped(mapping, QUERIES, stage="queries")
    missing = [pl.lit(None, QUERIES[name]).alias(name) for name in QUERIES if name not in frame.columns]
    frame = frame.with_columns(missing)
    wrong = frame.filter(~pl.col("answer_type").is_in(["choice", "free"]))
    if wrong.height:
        raise DataError(f"{mapping.file}: answer_type must be choice or free, got {_named(wrong, 'answer_type')}.")
    pictures = _copied(frame, mapping, target, max_pixels=max_pixels)
    frame = frame.with_columns(
        pl.Series("image", [f"{recorded.IMAGES}/{name}" for name, _ in pictures], pl.String),
        pl.Series("image_sha256", [digest for _, digest in pictures], pl.String),
    )
    queries = recorded.checked_queries(frame, where=mapping.file)
    queries = queries.with_columns(pl.col("image").str.strip_prefix(f"{recorded.IMAGES}/"))
    write_table(target / recorded.QUERIES, queries, "queries")
    return queries


def source_paths(table: dict[str, Any], base: Path) -> dict[str, str]:
    """The files that a mapping as YAML gives it reads, by their key, absolute; for a workspace's params and deps."""
    return {key: str((base / table[key]).resolve()) for key in ("file", "images") if table.get(key)}


def _check_keys(mapping: TableMapping, known: dict[str, pl.DataType], *, stage: str) -> None:
    named = {*mapping.columns, *mapping.constants}
    for name in sorted(named - set(known)):
        raise ConfigError(f"{stage}.table: unknown column '{name}'; {nearest(name, known)}")
    for name in _NEEDED[stage]:
        if name not in named:
            raise ConfigError(f"{stage}.table: {name} is missing; name its column in columns, or a text in constants.")


def _mapped(mapping: TableMapping, schema: dict[str, pl.DataType], *, stage: str) -> pl.DataFrame:
    """The table with our names and types; `image` is left as it is."""
    path = Path(mapping.file)
    if not path.is_file():
        raise ConfigError(f"{stage}.table.file names {mapping.file}, but there is no such file.")
    theirs = {name: its if isinstance(its, list) else [its] for name, its in mapping.columns.items()}
    frame = _read(path, columns=list(dict.fromkeys(column for its in theirs.values() for column in its)))
    for name, its in theirs.items():
        for column in its:
            if column not in frame.columns:
                raise ConfigError(
                    f"{stage}.table.columns.{name}: {mapping.file} has no column '{column}'; "
                    f"{nearest(column, frame.columns)}"
                )
    if not frame.height:
        raise DataError(f"{mapping.file}: has no rows; name another file in {stage}.table.file.")
    columns = [
        _choices(frame, its, mapping) if name == "choices" else _cast(frame[its[0]], name, schema[name], mapping.file)
        for name, its in theirs.items()
    ]
    constants = {name: pl.Series(name, [text] * frame.height) for name, text in mapping.constants.items()}
    return pl.DataFrame([*columns, *(_cast(s, n, schema[n], "constants") for n, s in constants.items())])


def _read(path: Path, *, columns: list[str]) -> pl.DataFrame:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return read_parquet(path)
    if kind == ".jsonl":
        return _read_json_lines(path, columns)
    try:
        return pl.read_csv(path, separator="\t" if kind == ".tsv" else ",", infer_schema=False)
    except (PolarsError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no readable {kind[1:]} file in UTF-8 ({error}); correct it, or save it as UTF-8."
        ) from None


def _read_json_lines(path: Path, columns: list[str]) -> pl.DataFrame:
    values: dict[str, list[Any]] = {}
    count = 0
    try:
        with path.open(encoding="utf-8") as handle:
            for count, line in enumerate((line for line in handle if line.strip()), start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}, row {count}: expected an object, got {type(row).__name__}.")
                for column in row:
                    if column in columns:
                        values.setdefault(column, [None] * (count - 1))
                for column, gathered in values.items():
                    gathered.append(row.get(column))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}); save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, row {count}: no JSON ({error}); correct it, or fetch the file again.") from None
    return pl.DataFrame([_series(name, gathered) for name, gathered in values.items()])


def _series(name: str, values: list[Any]) -> pl.Series:
    """Values of one kind as they are; of mixed kinds as texts, since 3 and "three" may well stand in one column."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        return pl.Series(name, [value and [_text(item) for item in value] for value in values], pl.List(pl.String))
    if len(kinds) == 1 and kinds <= {str, bool, int, float}:
        return pl.Series(name, values)
    return pl.Series(name, [None if value is None else _text(value) for value in values], pl.String)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _choices(frame: pl.DataFrame, its: list[str], mapping: TableMapping) -> pl.Series:
    """A list of texts a row, from a list column, one text with separators, or a column a choice."""
    if len(its) > 1:
        columns = [_cast(frame[column], column, pl.String(), mapping.file) for column in its]
        rows: Any = ([text for text in row if text] for row in zip(*columns, strict=True))
    elif isinstance(frame.schema[its[0]], pl.List):
        return frame[its[0]].cast(pl.List(pl.String)).alias("choices")
    else:
        texts = _cast(frame[its[0]], "choices", pl.String(), mapping.file)
        rows = ([part.strip() for part in text.split(mapping.list_separator)] if text else [] for text in texts)
    return pl.Series("choices", [row or None for row in rows], pl.List(pl.String))


def _cast(series: pl.Series, name: str, dtype: pl.DataType, file: str) -> pl.Series:
    """`series` as `dtype`, under our name; a value that cannot be one is named with its row."""
    if name == "image" and not isinstance(series.dtype, pl.String):
        return series.alias(name)
    if isinstance(series.dtype, pl.Null):
        return series.cast(dtype).alias(name)
    if isinstance(series.dtype, (pl.List, pl.Struct, pl.Binary, pl.Array)):
        raise DataError(f"{file}: column '{series.name}' is {series.dtype}; {name} needs {dtype}.")
    if isinstance(dtype, pl.Boolean) and not isinstance(series.dtype, pl.Boolean):
        texts = series.cast(pl.String).str.strip_chars().str.to_lowercase()
        cast = texts.replace_strict(_TRUTHS, default=None, return_dtype=pl.Boolean)
    elif isinstance(dtype, pl.String):
        cast = series.cast(dtype)
    elif isinstance(series.dtype, pl.Boolean):
        raise DataError(f"{file}: column '{series.name}' is {series.dtype}; {name} needs {dtype}.")
    else:
        numbers = (series.str.strip_chars() if isinstance(series.dtype, pl.String) else series).cast(
            pl.Float64, strict=False
        )
        cast = pl.select(pl.when(numbers.is_finite()).then(numbers.cast(dtype, strict=False))).to_series()
        if dtype.is_integer():
            cast = pl.select(pl.when(numbers == numbers.round()).then(cast)).to_series()  # 1.5 tokens are none
    wrong = (cast.is_null() & series.is_not_null()).arg_true()
    if len(wrong):
        first = ", ".join(f"row {row + 1}: {series[row]!r}" for row in wrong.head(_NUM_NAMED))
        raise DataError(
            f"{file}: column '{series.name}' should hold {name} as {dtype}, but {len(wrong)} values are none "
            f"({first}); correct them, or name another column."
        )
    return cast.alias(name)


def _copied(frame: pl.DataFrame, mapping: TableMapping, target: Path, *, max_pixels: int) -> list[tuple[str, str]]:
    """Copy each row's picture under target/images; its file name there and its hash, in the rows' order."""
    (target / recorded.IMAGES).mkdir()
    copied, faults = [], []
    for query_id, picture in _pictures(frame, mapping):
        try:
            content = picture if isinstance(picture, bytes) else _picture_file(picture, mapping)
            digest = hashlib.sha256(content).hexdigest()
            suffix = next((its for start, its in _SUFFIXES.items() if content.startswith(start)), "bin")
            name = f"{digest[:16]}.{suffix}"
            place = target / recorded.IMAGES / name
            if not place.exists():
                place.write_bytes(content)
                check_header(place, max_pixels=max_pixels)
            copied.append((name, digest))
        except DataError as error:
            copied.append(("none", "none"))
            faults.append(f"query {query_id}: {error}")
    if faults:
        raise DataError(f"{mapping.file}: pictures that cannot be used, {recorded.named(faults, len(faults))}")
    return copied


def _pictures(frame: pl.DataFrame, mapping: TableMapping) -> Iterator[tuple[str, str | bytes]]:
    """(query, path or bytes) of each row; bytes alone, or in a struct as data sets of the hub have them."""
    column = frame["image"]
    if isinstance(column.dtype, pl.Struct) and "bytes" in frame.select("image").unnest("image").columns:
        column = column.struct.field("bytes")
    if isinstance(column.dtype, pl.String) and mapping.images is None:
        raise ConfigError("queries.table.images: name the folder that the pictures' paths lie under.")
    if not isinstance(column.dtype, (pl.String, pl.Binary)):
        raise DataError(f"{mapping.file}: the image column is {column.dtype}; expected paths, or the pictures' bytes.")
    if column.null_count():
        raise DataError(f"{mapping.file}: the image column is empty in {_named(frame.filter(column.is_null()))}.")
    yield from zip(frame["query_id"], column, strict=True)


def _picture_file(name: str, mapping: TableMapping) -> bytes:
    folder = Path(mapping.images or "").resolve()
    if not folder.is_dir():
        raise ConfigError(f"queries.table.images names {mapping.images}, but there is no such folder.")
    parts = PurePosixPath(name).parts
    path = (folder / name).resolve()  # follows links, so that one which leads out is seen
    if "\\" in name or ".." in parts or not path.is_relative_to(folder):
        raise DataError(f"{name!r} leads out of {mapping.images}; put the picture there.")
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"picture {path} is missing; put the file there, or drop the query.") from None


def _named(rows: pl.DataFrame, *columns: str) -> str:
    return recorded.named(rows.select("query_id", *columns).iter_rows(), rows.height)
