"""Time and memory of a gate: the checks of stage `label` over made-up answers and labels of seven VLMs.

Each size runs in a process of its own, whose peak memory is that of the tables, of polars, pandas and Great
Expectations, and of what the gate adds: that is printed apart, since only the tables may grow with the rows. A share of
the rows can be made to fail; their rows are then kept and pages built, as in the stage.

Run from the checkout: `python -m benchmarks.gates [--rows 250000 1000000] [--failing 0]`.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time

import polars as pl

from arms_model.errors import DataError
from tasks.common.gates import hold
from tasks.common.invariants.label import LabelGate, checks
from tasks.common.tables import SCHEMAS

NUM_VLMS = 7
LIMIT_S, LIMIT_GIB = 30, 2


def made_up(num_rows: int, *, failing: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables `collect` and `label` of `num_rows` answers; a share `failing` of them is an error labelled correct."""
    rows = pl.int_range(num_rows, eager=True)
    is_error = rows < int(num_rows * failing)
    key = [
        pl.format("benchmark/{}", rows // NUM_VLMS).alias("query_id"),
        pl.format("vlm-{}", rows % NUM_VLMS).alias("vlm"),
    ]
    output = pl.format("The answer is {}.", rows % 10)
    error = pl.when(is_error).then(pl.lit("timed out"))
    answers = {"output": output, "error": error, "imported_correct": pl.when(is_error).then(pl.lit(True))}
    blank = {name: pl.lit(None, dtype).alias(name) for name, dtype in SCHEMAS["collect"].items()}
    collect = pl.select(*key, **answers).with_columns(
        expression for name, expression in blank.items() if name not in ("query_id", "vlm", *answers)
    )
    labels = pl.select(*key, correct=(rows % 3 == 0) | is_error, predicted=pl.format("{}", rows % 10))
    return collect.select(*SCHEMAS["collect"]), labels.select(*SCHEMAS["label"])


def peak_mib() -> float:
    """The most memory that this process ever held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(num_rows: int, *, failing: float) -> None:
    """Hold the gate of `num_rows` labels and print what it took."""
    collect, labels = made_up(num_rows, failing=failing)
    tables_mib, before = (collect.estimated_size("mb") + labels.estimated_size("mb")), peak_mib()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.suppress(DataError):
        hold("label", checks({"base": labels}, {"base": collect}, gate=LabelGate()))
    seconds, peak = time.perf_counter() - started, peak_mib()
    print(
        f"{num_rows:>9,} rows: {seconds:5.1f} s, peak {peak:6.0f} MiB, of it {before:5.0f} before the gate "
        f"(tables {tables_mib:4.0f}), {peak - before:5.0f} added"
    )
    if num_rows <= 1_000_000 and (seconds > LIMIT_S or peak > LIMIT_GIB * 1024):
        sys.exit(f"more than {LIMIT_S} s or {LIMIT_GIB} GiB")


def main() -> int:
    """Run each size in a process of its own; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--failing", type=float, default=0.0, help="share of the rows that fail")
    options = parser.parse_args()
    if len(options.rows) == 1 and "ARMS_BENCHMARK_CHILD" in os.environ:
        run(options.rows[0], failing=options.failing)
        return 0
    codes = []
    for num_rows in options.rows:
        command = [sys.executable, "-m", "benchmarks.gates", "--rows", str(num_rows), "--failing", str(options.failing)]
        codes.append(subprocess.run(command, env=os.environ | {"ARMS_BENCHMARK_CHILD": "1"}, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
