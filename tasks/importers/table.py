"""A table of somebody's own into a recorded folder, so that several, and other formats, can stand in one query set.

    python -m tasks.importers.table mapping.yaml --out recorded

The mapping says which column is what, as `source: table` of the stages does (`tasks/common/mapped.py`); --help shows
one. Paths in it are relative to its own folder. Either section may be left out. Where one table is all there is, no
folder is needed: see `queries.source: table`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from arms_model.errors import ConfigError, DataError
from arms_model.settings import parse
from tasks.common import mapped
from tasks.importers.command import make_parser, run_importer
from tasks.importers.recording import Answer, Query, Recording, with_choices

MAPPING = """\
queries:
    file: questions.csv           # csv, tsv, parquet or jsonl
    columns: {query_id: id, question: prompt, answer: gold, choices: [a, b, c], image: picture}
    constants: {benchmark: mine, task: reading, answer_type: choice}    # or free, without choices
    images: pictures              # where the files in column picture lie; leave out where it holds the bytes
  collect:
    file: answers.csv
    columns: {query_id: id, vlm: model, output: response}"""


@dataclass(frozen=True, kw_only=True)
class Mappings:
    """The mapping file.

    Attributes:
        queries: the table of questions and pictures.
        collect: the table of answers.
    """

    queries: mapped.TableMapping | None = None
    collect: mapped.TableMapping | None = None

    def __post_init__(self) -> None:
        if self.queries is None and self.collect is None:
            raise ValueError("name queries, collect, or both")


def import_tables(options: argparse.Namespace, recording: Recording) -> None:
    """Read the tables that a mapping names into `recording`."""
    mappings = _read(options.mapping)
    base = options.mapping.resolve().parent
    if mappings.queries is not None:
        _add_queries(_located(mappings.queries, base), options, recording)
    if mappings.collect is not None:
        where = f"{options.mapping.name}: collect"
        answers = mapped.read_outputs(_located(mappings.collect, base), where=where)
        answers = answers.rename({"imported_correct": "reference_correct"})
        columns = [field.name for field in fields(Answer)]
        for row in answers.select(columns).iter_rows(named=True):
            recording.add_answer(Answer(**row))


def _read(path: Path) -> Mappings:
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"there is no file {path}; name the mapping.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML in UTF-8: {error}") from None
    return parse(Mappings, values, path.name)


def _located(mapping: mapped.TableMapping, base: Path) -> mapped.TableMapping:
    images = None if mapping.images is None else str(base / mapping.images)
    return replace(mapping, file=str(base / mapping.file), images=images)


def _add_queries(mapping: mapped.TableMapping, options: argparse.Namespace, recording: Recording) -> None:
    columns = [field.name for field in fields(Query)]
    if "language" not in {*mapping.columns, *mapping.constants}:
        mapping = replace(mapping, constants=mapping.constants | {"language": options.language})
    queries = mapped.read_queries(mapping, where=f"{options.mapping.name}: queries")
    rows = queries.select(columns).iter_rows(named=True)
    for row, (query_id, cell) in zip(rows, mapped.pictures(queries, mapping), strict=True):
        row |= {"question": with_choices(row["question"] or "", row["choices"])}
        row |= {"licence": row["licence"] or options.licence}
        try:
            recording.add_query(Query(**row), mapped.picture(cell, mapping))
        except DataError as error:
            recording.fault(f"query {query_id}: {error}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = make_parser(
        "table",
        description="A csv, tsv, parquet or jsonl table of your own, by a mapping of its columns. It may also say "
        "the language.",
        example=f"python -m tasks.importers.table mapping.yaml --out recorded\n\nmapping.yaml:\n  {MAPPING}",
    )
    command.add_argument("mapping", type=Path, help="a YAML file with the sections queries, collect, or both")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    return run_importer("table", parser(), import_tables, argv)


if __name__ == "__main__":
    sys.exit(main())
