"""Stage `label`: whether each answer was right, a table per pool.

`tasks.common.labelling` says how. The raw outputs stay beside the labels, in `collect/`.

Run: `python -m tasks.label`; reads `queries/queries.parquet` and `collect/{base,new}.parquet`, writes
`label/{base,new}.parquet`, both or none, and `gates/label.json`.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.common.files import folder_written_whole
from tasks.common.gates import hold
from tasks.common.invariants.label import LabelGate, checks
from tasks.common.labelling import labels
from tasks.common.params import load_gate, load_section
from tasks.common.stage import run_stage
from tasks.common.tables import read_table, write_table

log = logging.getLogger(__name__)
QUERIES = Path("queries/queries.parquet")
COLLECT, FOLDER = Path("collect"), Path("label")
POOLS = ("base", "new")


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Section `label`: nothing to set; a key there is refused."""


def body() -> None:
    """Label both pools, hold the gate, then write both tables, whole or not at all."""
    load_section("label", LabelSettings)
    gate = load_gate("label", LabelGate)
    queries = read_table(QUERIES, "queries")
    answers, tables = {}, {}
    for pool in POOLS:
        source = COLLECT / f"{pool}.parquet"
        answers[pool] = collect = read_table(source, "collect")
        tables[pool] = table = labels(collect, queries=queries, where=str(source))
        log.info("pool %s: %d labels, %d right, %d errors left out",
                 pool, table.height, table["correct"].sum(), collect.height - table.height)  # fmt: skip
    findings = hold("label", checks(tables, answers, gate=gate))
    with folder_written_whole(FOLDER) as folder:
        for pool, table in tables.items():
            write_table(folder / f"{pool}.parquet", table, "label")
    findings.write()


def main() -> int:
    """Run the stage; returns the exit code."""
    return run_stage("label", body)


if __name__ == "__main__":
    sys.exit(main())
