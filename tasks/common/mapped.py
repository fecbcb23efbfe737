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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import check_header
from arms_model.settings import nearest
from tasks.common import recorded
from tasks.common.tables import SCHEMAS

QUERIES = {name: dtype for name, dtype in SCHEMAS["queries"].items() if name != "image_sha256"}
OUTPUTS = {
    ("reference_correct" if name == "imported_correct" else name): dtype for name, dtype in SCHEMAS["collect"].items()
}
_NEEDED = ("query_id", "benchmark", "task", "language", "question", "answer", "answer_type", "image")
_KINDS = (".csv", ".tsv", ".parquet", ".jsonl")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NUM_NAMED = 5  # rows at fault that a message names
_ROWS_AT_ONCE = 256  # of pictures that stand in a table


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


def read_outputs(mapping: TableMapping, *, where: str = "collect.table") -> pl.DataFrame:
    """What VLMs answered, as table `collect`, all VLMs together.

    Args:
        mapping: `collect.table`.
        where: the mapping's own place, for messages.

    Raises:
        ConfigError: the file or a column that params name is not there, or they name no label, output or error.
        DataError: the file is damaged, a value cannot be read as what it should be, or `recorded.checked_outputs`.
    """
    _check_keys(mapping, OUTPUTS, ("query_id", "vlm"), where=where)
    if not {"output", "reference_correct", "error"} & {*mapping.columns, *mapping.constants}:
        raise ConfigError(f"{where}.columns: map at least one of output, reference_correct and error.")
    return recorded.checked_outputs(_mapped(mapping, OUTPUTS, where=where), where=mapping.file)


def read_queries(mapping: TableMapping, *, where: str = "queries.table") -> pl.DataFrame:
    """The queries in columns of QUERIES; `image` only where it is a path.

    Args:
        mapping: `queries.table`.
        where: the mapping's own place, for messages.

    Raises:
        ConfigError: the file, the folder of pictures or a column that params name is not there.
        DataError: the file is damaged, or a value cannot be what it should be; rows are named.
    """
    _check_keys(mapping, QUERIES, _NEEDED, where=where)
    frame = _mapped(mapping, QUERIES, where=where)
    if "image" in frame.columns and not Path(mapping.images or "?").is_dir():
        missing = f"; there is no folder {mapping.images}" if mapping.images else ""
        raise ConfigError(f"{where}.images: name the folder that the pictures' paths lie under{missing}.")
    wrong = frame.filter(~pl.col("answer_type").is_in(["choice", "free"]))
    if wrong.height:
        raise DataError(f"{mapping.file}: answer_type must be choice or free, got {_named(wrong, 'answer_type')}.")
    rows = frame.filter(answer_type="choice").select("query_id", "answer", "choices").iter_rows()
    astray = [f"{key} ({gold!r})" for key, gold, its in rows if gold and its and not recorded.is_among(gold, its)]
    if astray:
        found = recorded.named(astray, len(astray))
        raise DataError(f"{mapping.file}: answers that are none of their choices, {found}; correct them.")
    return frame


def pictures(queries: pl.DataFrame, mapping: TableMapping) -> Iterator[tuple[str, bytes | str | None]]:
    """Each query's id and image cell: a path, or a picture's bytes, of which few are in memory at a time.

    Args:
        queries: from `read_queries`.
        mapping: the same mapping.
    """
    if "image" in queries.columns:
        yield from queries.select("query_id", "image").iter_rows()
        return
    cells = pl.scan_parquet(mapping.file, glob=False).select(mapping.columns["image"])
    for start in range(0, queries.height, _ROWS_AT_ONCE):
        column = cells.slice(start, _ROWS_AT_ONCE).collect().to_series()
        if isinstance(column.dtype, pl.Struct):  # as data sets of the hub have them
            column = column.struct.field("bytes")
        yield from zip(queries["query_id"].slice(start, _ROWS_AT_ONCE), column, strict=True)


def picture(cell: bytes | str | None, mapping: TableMapping) -> bytes | Path:
    """The picture that a cell holds or names.

    Raises:
        DataError: the cell is empty, or names no file in the mapping's folder of pictures.
    """
    if not cell:
        raise DataError("its image cell is empty; fill it, or drop the query")
    return cell if isinstance(cell, bytes) else recorded.inside(Path(mapping.images or ""), cell)


def copy_query_set(mapping: TableMapping, target: Path, *, max_pixels: int) -> pl.DataFrame:
    """Copy a query set's pictures into `target`, as `tasks.queries.copy_query_set` does a recorded one's.

    Args:
        mapping: `queries.table`.
        target: an empty folder.
        max_pixels: a picture with more is refused from its header.

    Returns:
        Table `queries`; `image` is relative to `target/images`.

    Raises:
        ConfigError: see `read_queries`.
        DataError: see `read_queries`; or the table breaks the contract, or pictures are missing or broken.
    """
    frame = read_queries(mapping)
    copied = _copied(frame, mapping, target, max_pixels=max_pixels)
    frame = frame.with_columns(
        pl.Series("image", [f"{recorded.IMAGES}/{name}" for name, _ in copied], pl.String),
        pl.Series("image_sha256", [digest for _, digest in copied], pl.String),
    )
    queries = recorded.checked_queries(frame, where=mapping.file)
    return queries.with_columns(pl.col("image").str.strip_prefix(f"{recorded.IMAGES}/"))


def source_paths(table: dict[str, Any], base: Path) -> dict[str, str]:
    """The files that a mapping as YAML gives it reads, by their key, absolute; for a workspace's params and deps."""
    return {key: str((base / table[key]).resolve()) for key in ("file", "images") if table.get(key)}


def _check_keys(mapping: TableMapping, known: dict[str, pl.DataType], needed: tuple[str, ...], *, where: str) -> None:
    named = {*mapping.columns, *mapping.constants}
    for name in sorted(named - set(known)):
        raise ConfigError(f"{where}: unknown column '{name}'; {nearest(name, known)}")
    for name in needed:
        if name not in named:
            raise ConfigError(f"{where}: {name} is missing; name its column in columns, or a text in constants.")


def _mapped(mapping: TableMapping, schema: dict[str, pl.DataType], *, where: str) -> pl.DataFrame:
    """The table with our names and types, what is not mapped as nulls; `image` only where it is a path."""
    path = Path(mapping.file)
    if not path.is_file():
        raise ConfigError(f"{where}.file names {mapping.file}, but there is no such file.")
    theirs = {name: its if isinstance(its, list) else [its] for name, its in mapping.columns.items()}
    wanted = list(dict.fromkeys(column for its in theirs.values() for column in its))
    frame, found = _read(path, wanted, image=theirs.get("image", [""])[0])
    for name, its in theirs.items():
        for column in its:
            if column not in found:
                raise ConfigError(
                    f"{where}.columns.{name}: {mapping.file} has no column '{column}'; {nearest(column, found)}"
                )
    if not frame.height:
        raise DataError(f"{mapping.file}: has no rows; name another file in {where}.file.")
    columns = []
    for name, its in theirs.items():
        if name == "choices":
            columns.append(_choices(frame, its, mapping))
        elif name != "image" or not _holds_pictures(found[its[0]], mapping.file):
            columns.append(_cast(frame[its[0]], name, schema[name], mapping.file))
    for name, text in mapping.constants.items():
        columns.append(_cast(pl.Series(name, [text] * frame.height), name, schema[name], "constants"))
    mapped = pl.DataFrame(columns)
    rest = {name: dtype for name, dtype in schema.items() if name not in {*theirs, *mapping.constants}}
    return mapped.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in rest.items())


def _holds_pictures(dtype: pl.DataType, file: str) -> bool:
    """Whether the image column holds the pictures' bytes, alone or in a struct; not so a column of paths."""
    inner = dict(dtype).get("bytes", dtype) if isinstance(dtype, pl.Struct) else dtype
    if inner not in (pl.String(), pl.Binary(), pl.Null()):
        raise DataError(f"{file}: the image column is {dtype}; expected paths, or the pictures' bytes.")
    return inner == pl.Binary()


def _read(path: Path, columns: list[str], *, image: str) -> tuple[pl.DataFrame, dict[str, pl.DataType]]:
    """The table's named columns, but for pictures' bytes, and the types of all its columns."""
    kind = path.suffix.lower()
    if kind == ".jsonl":
        frame = _read_json_lines(path, columns)
        return frame, dict(frame.schema)
    try:
        if kind == ".parquet":
            table = pl.scan_parquet(path, glob=False)
            found = dict(table.collect_schema())
            named = [name for name in columns if name in found]
            small = [name for name in named if name != image or not _holds_pictures(found[name], str(path))]
            return table.select(small).collect(), found
        frame = pl.read_csv(path, separator="\t" if kind == ".tsv" else ",", infer_schema=False, glob=False)
    except (PolarsError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no readable {kind[1:]} file in UTF-8 ({error}); correct it, or save it as UTF-8."
        ) from None
    return frame, dict(frame.schema)


def _read_json_lines(path: Path, columns: list[str]) -> pl.DataFrame:
    values: dict[str, list[Any]] = {}
    count = 0
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for count, line in enumerate((line for line in handle if line.strip()), start=1):
                row = recorded.encodable(json.loads(line))
                if not isinstance(row, dict):
                    raise DataError(f"{path}, row {count}: expected an object, got {type(row).__name__}.")
                for column in row:
                    if column in columns:
                        values.setdefault(column, [None] * (count - 1))
                for column, gathered in values.items():
                    gathered.append(row.get(column))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}); save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, row {count}: no JSON ({error}); correct it, or fetch the file again.") from None
    return pl.DataFrame([_series(name, gathered) for name, gathered in values.items()])


def _series(name: str, values: list[Any]) -> pl.Series:
    """Values of one kind as they are; of mixed kinds as texts, since 3 and "three" may well stand in one column."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        return pl.Series(name, [value and [_text(item) for item in value] for value in values], pl.List(pl.String))
    if len(kinds) == 1 and kinds <= {str, bool, float}:
        return pl.Series(name, values)
    return pl.Series(name, [None if value is None else _text(value) for value in values], pl.String)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _choices(frame: pl.DataFrame, its: list[str], mapping: TableMapping) -> pl.Series:
    """A list of texts a row, from a list column, one text with separators, or a column a choice."""
    dtype = frame.schema[its[0]]
    rows: Iterable[Sequence[str | None]]
    if len(its) > 1:
        rows = zip(*(_cast(frame[column], column, pl.String(), mapping.file) for column in its), strict=True)
    elif isinstance(dtype, (pl.List, pl.Array)):
        if dtype.inner.is_nested() or dtype.inner == pl.Binary():
            raise DataError(f"{mapping.file}: column '{its[0]}' is {dtype}; choices needs lists of texts.")
        rows = (row or () for row in frame[its[0]].cast(pl.List(pl.String)).to_list())
    else:
        texts = _cast(frame[its[0]], "choices", pl.String(), mapping.file)
        rows = ((text or "").split(mapping.list_separator) for text in texts)
    choices = [[(text or "").strip() for text in row] for row in rows]
    for row in choices:
        while row and not row[-1]:  # questions with fewer choices than others
            row.pop()
    gaps = [number for number, row in enumerate(choices, start=1) if "" in row]
    if gaps:
        raise DataError(
            f"{mapping.file}: a choice is empty before others, so that letters would shift, in rows: "
            f"{recorded.named(gaps, len(gaps))}; fill it."
        )
    return pl.Series("choices", [row or None for row in choices], pl.List(pl.String))


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
    for query_id, cell in pictures(frame, mapping):
        try:
            found = picture(cell, mapping)
            content = found if isinstance(found, bytes) else found.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            name = f"{digest[:16]}.{recorded.suffix(content)}"
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


def _named(rows: pl.DataFrame, *columns: str) -> str:
    return recorded.named(rows.select("query_id", *columns).iter_rows(), rows.height)
