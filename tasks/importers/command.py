"""What all importers' commands share: options, messages, exit codes, and the summary at the end."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from arms_model.errors import ConfigError
from arms_model.pictures import DEFAULT_MAX_PIXELS
from tasks.common import recorded
from tasks.common.stage import run_command
from tasks.importers.recording import Recording, recording

_PICTURE_FOLDERS = ("images", "media")  # options of importers


def make_parser(module: str, *, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with --out, --language, --licence and --max-pixels; an importer adds its own.

    Args:
        module: the importer's name, as in `python -m tasks.importers.<module>`.
        description: what it reads, for --help.
        example: a whole command line, shown at the end of --help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.importers.{module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="the recorded folder to make, or to add to: rows that stand there already are kept once",
    )
    parser.add_argument("--language", default="en", metavar="CODE", help="of the questions, ISO 639-1 (default: en)")
    parser.add_argument("--licence", metavar="TEXT", help="of the questions and pictures, kept beside them")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help=f"a picture with more is refused (default: {DEFAULT_MAX_PIXELS:,})",
    )
    return parser


def run_importer(
    module: str,
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Recording], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, let `body` fill the recording, write it, print the summary.

    An importer's module ends with

        def main(argv: Sequence[str] | None = None) -> int:
            return run_importer("helm", parser(), import_runs, argv)

        if __name__ == "__main__":
            sys.exit(main())

    Args:
        module: the importer's name, for the messages.
        parser: from `make_parser`.
        body: reads the source that the options name into the recording.
        argv: the command line; None for the program's own.

    Returns:
        The exit code.
    """
    options = parser.parse_args(argv)

    def run() -> None:
        for name in _PICTURE_FOLDERS:
            folder = getattr(options, name, None)
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"--{name} {folder} is no folder; name the one that the pictures lie in.")
        with recording(options.out, max_pixels=options.max_pixels) as taken:
            body(options, taken)
        print_summary(options.out, left_out=taken.left_out)

    return run_command(module, run)


def print_summary(out: Path, *, left_out: Mapping[str, str]) -> None:
    """Print what the folder now holds and what to write into `params.yaml`.

    Args:
        out: the recorded folder.
        left_out: the reason for each query that was left out.
    """
    queries = recorded.read_queries(out)
    has_outputs = (out / recorded.OUTPUTS).exists()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table("benchmark", "queries", "pictures", box=None)
    counts = queries.group_by("benchmark").agg(pl.len(), pl.col("image_sha256").n_unique()).sort("benchmark")
    for row in counts.iter_rows():
        table.add_row(*map(str, row))
    console.print(table)
    if has_outputs:
        console.print(_answers_table(recorded.read_outputs(out), queries))
    reasons = pl.Series("reason", list(left_out.values()), pl.String).value_counts(sort=True)
    for reason, count in reasons.iter_rows():
        console.print(f"left out: {count} queries: {reason}")
    sections = ["queries", "collect"] if has_outputs else ["queries"]
    console.print(f"{out} holds them. To use it, copy presets/real.yaml to presets/mine.yaml and write there:")
    for section in sections:
        console.print(f"\n{section}:\n  source: recorded\n  folder: {out.resolve()}")
    if has_outputs:
        console.print(
            "\nand a block under `vlms` for each VLM (name, display_name, provider, pool; benchmarks where it answered "
            "some of them only); others are left out. Single queries that a VLM was not asked replace those under "
            "gates.collect.missing_pairs."
        )
    console.print(
        '\nThen run it in a workspace, which sees when the folder changes: cd "$(python -m tasks.common.workspace '
        'presets/mine.yaml)" && dvc repro'
    )


def _answers_table(outputs: pl.DataFrame, queries: pl.DataFrame) -> Table:
    """A line per benchmark and VLM; `called right` is by the source's own judge, where it says."""
    answers = outputs.join(queries.select("query_id", "benchmark"), on="query_id")
    judged = pl.col("imported_correct")
    counts = answers.group_by("benchmark", "vlm").agg(
        pl.len(), pl.col("error").count().alias("errors"), judged.sum().alias("right"), judged.count().alias("judged")
    )
    table = Table("benchmark", "vlm", "answers", "errors", "called right", box=None)
    for benchmark, vlm, num, errors, right, num_judged in counts.sort("benchmark", "vlm").iter_rows():
        table.add_row(benchmark, vlm, str(num), str(errors), f"{right} of {num_judged}" if num_judged else "-")
    return table
