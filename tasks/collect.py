"""Stage `collect`: what each VLM of `params.yaml: vlms` answered, a table per pool.

`collect.source` says where answers come from: `recorded` reads what somebody kept; `table` does, too, from a csv, tsv,
parquet or jsonl file whose columns `collect.table` names (`tasks/common/mapped.py`); `endpoint` asks each VLM at the
endpoint of its block. An endpoint's answers go into the answer store first (`tasks/common/endpoint/answers.py`);
nothing that has an answer there is asked again, and the tables are sealed from it. Which queries a VLM is asked
(`benchmarks`, `sample` ... of its block) is decided alike for every source. A pair that is not in the tables was not
asked; it is never an answer that was wrong, nor is a row with an error.

Run: `python -m tasks.collect`; reads the source and `queries/`, writes `collect/{base,new}.parquet` and
`gates/collect.json`.
"""

import argparse
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import DEFAULT_MAX_PIXELS
from arms_model.settings import nearest
from tasks.common import recorded
from tasks.common.asked import asked, first_asked, refuse_unknown_benchmarks
from tasks.common.endpoint.answers import STORE, AnswerStore, Spent
from tasks.common.endpoint.collection import (
    Limits,
    Questions,
    collect_answers,
    refuse_unpriced_budgets,
    refuse_without_endpoints,
)
from tasks.common.endpoint.forecast import as_document, forecasts, show, show_spent
from tasks.common.endpoint.restoring import refuse_new_store_beside_sealed_answers, restore
from tasks.common.files import folder_written_whole
from tasks.common.gates import hold
from tasks.common.invariants.collect import CollectGate, checks
from tasks.common.labelling import answered_rightly
from tasks.common.mapped import TableMapping, read_outputs
from tasks.common.params import load_gate, load_section
from tasks.common.stage import run_command, run_stage
from tasks.common.tables import SCHEMAS, read_table, write_table
from tasks.common.vlms import POOLS, Vlm, load_vlms

log = logging.getLogger(__name__)
FOLDER = Path("collect")
QUERIES, IMAGES = Path("queries/queries.parquet"), Path("queries/images")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """Section `collect`.

    Attributes:
        source: where answers come from.
        folder: a recorded folder; None for the one that ARMS_REAL_DATA names.
        table: the file and what its columns are; needed for its source only.
        max_error_share: of a VLM's questions, at most this share may end as error rows; above it the stage fails.
        budget_usd: what the answers of all VLMs may cost together, earlier runs' included; None for no limit.
        servers: endpoint name -> the command that starts its server where nothing listens; it is stopped afterwards.
        max_pixels: a picture with more is refused from its header.
    """

    source: Literal["recorded", "endpoint", "table"]
    folder: str | None = None
    table: TableMapping | None = None
    max_error_share: float = 0.02
    budget_usd: float | None = None
    servers: dict[str, str] = field(default_factory=dict)
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.source == "table" and self.table is None:
            raise ValueError("source table needs `table: {file: ..., columns: {...}}`")
        if not 0 <= self.max_error_share <= 1:
            raise ValueError(f"max_error_share must be from 0 to 1, not {self.max_error_share}")
        if self.budget_usd is not None and not 0 <= self.budget_usd < math.inf:
            raise ValueError(f"budget_usd must be a number of 0 or more, not {self.budget_usd}")
        if empty := [name for name, command in self.servers.items() if not command.strip()]:
            raise ValueError(f"servers.{empty[0]} is empty; write the command that starts it, or leave it out")

    @property
    def limits(self) -> Limits:
        """What asking may do."""
        return Limits(max_error_share=self.max_error_share, budget_usd=self.budget_usd, servers=self.servers)


def recorded_answers(folder: Path, *, queries: pl.DataFrame, vlms: Sequence[Vlm]) -> pl.DataFrame:
    """The answers of `vlms` in a recorded folder, cut to the queries that each VLM is asked.

    Args:
        folder: the recorded folder.
        queries: table `queries`.
        vlms: the VLMs of params.

    Returns:
        Table `collect`, both pools together.

    Raises:
        ConfigError: a VLM's block asks none of the queries that it has answers to.
        DataError: the recorded table breaks its contract, answers a query that is not in the query set, or holds
            nothing of a VLM that params name.
    """
    where = folder / recorded.OUTPUTS
    return cut_to_what_is_asked(recorded.read_outputs(folder), where=where, queries=queries, vlms=vlms)


def cut_to_what_is_asked(
    outputs: pl.DataFrame, *, where: Path, queries: pl.DataFrame, vlms: Sequence[Vlm]
) -> pl.DataFrame:
    """Of kept answers, those to the queries that each VLM is asked; else as `recorded_answers`."""
    unknown = outputs.join(queries, on="query_id", how="anti").select("query_id", "vlm").sort("query_id", "vlm")
    if unknown.height:
        rows = recorded.named(unknown.iter_rows(), unknown.height)
        raise DataError(f"{where}: answers to queries that are not in {QUERIES}: {rows}. Drop them or add the queries.")
    _refuse_vlms_without_answers(outputs, vlms, where=where)
    _log_vlms_left_out(outputs, vlms)
    answers = outputs.join(queries.select("query_id", "benchmark"), on="query_id")
    first = first_asked(vlms)
    cut = pl.concat([_asked_of(answers, vlm, right=()) for vlm in first])
    if later := [vlm for vlm in vlms if vlm not in first]:
        base = cut.filter(pl.col("vlm").is_in([vlm.name for vlm in vlms if vlm.pool == "base"]))
        right = answered_rightly(base.select(*SCHEMAS["collect"]), queries=queries, where=str(where))
        cut = pl.concat([cut, *(_asked_of(answers, vlm, right=right) for vlm in later)])
    return cut.select(*SCHEMAS["collect"])


def _asked_of(answers: pl.DataFrame, vlm: Vlm, *, right: Collection[str]) -> pl.DataFrame:
    own = asked(answers.filter(pl.col("vlm") == vlm.name), vlm, answered_by_base=right)
    if not own.height:
        _refuse_block_that_asks_nothing(vlm, answers)
    return own


def _refuse_vlms_without_answers(outputs: pl.DataFrame, vlms: Sequence[Vlm], *, where: Path) -> None:
    answered = set(outputs["vlm"])
    missing = [vlm.name for vlm in vlms if vlm.name not in answered]
    if missing:
        raise DataError(
            f"{where}: no answer of {recorded.named(missing, len(missing))}. params.yaml names them in `vlms`: record "
            f"their answers, remove their blocks, or correct the name; '{missing[0]}': {nearest(missing[0], answered)}"
        )


def _refuse_block_that_asks_nothing(vlm: Vlm, answers: pl.DataFrame) -> None:
    there = sorted(set(answers.filter(pl.col("vlm") == vlm.name)["benchmark"]))
    raise ConfigError(
        f"vlms: {vlm.name}: benchmarks: none of its answers is of {', '.join(vlm.benchmarks or ())}; it has answers on "
        f"{', '.join(there)}. Name one of those, or remove the block."
    )


def _log_vlms_left_out(outputs: pl.DataFrame, vlms: Sequence[Vlm]) -> None:
    left_out = outputs.filter(~pl.col("vlm").is_in([vlm.name for vlm in vlms]))
    if left_out.height:
        log.info("left out: %d answers of %d VLMs that params do not name", left_out.height, left_out["vlm"].n_unique())


def body() -> None:
    """Read params and queries, gather the answers, hold their gate, write both tables whole or not at all."""
    settings, vlms, queries = _read()
    gate = load_gate("collect", CollectGate)
    if gate.missing_pairs and settings.source == "endpoint":
        raise ConfigError(
            "gates.collect.missing_pairs is for gaps in recorded answers; an endpoint is asked all that a block asks. "
            "Empty it."
        )
    if settings.source == "recorded":
        source = recorded.source_folder(settings.folder, where="collect.folder")
        answers = recorded_answers(source, queries=queries, vlms=vlms)
    elif settings.source == "table" and settings.table is not None:
        outputs, where = read_outputs(settings.table), Path(settings.table.file)
        answers = cut_to_what_is_asked(outputs, where=where, queries=queries, vlms=vlms)
    else:
        with AnswerStore() as store:
            refuse_new_store_beside_sealed_answers(vlms, store, served_here=set(settings.servers))
            questions = Questions(queries, images=IMAGES, max_pixels=settings.max_pixels)
            answers = collect_answers(vlms, questions, queries=queries, store=store, limits=settings.limits)
    names = {pool: [vlm.name for vlm in vlms if vlm.pool == pool] for pool in POOLS}
    tables = {pool: answers.filter(pl.col("vlm").is_in(names[pool])) for pool in POOLS}
    findings = hold("collect", checks(tables, queries=queries, vlms=vlms, gate=gate))
    with folder_written_whole(FOLDER) as folder:
        for pool, table in tables.items():
            write_table(folder / f"{pool}.parquet", table, "collect")
            errors = table["error"].count()
            log.info("pool %s: %d answers of %d VLMs, %d errors", pool, table.height - errors, len(names[pool]), errors)
    findings.write()
    if settings.source == "endpoint" and answers["error"].count():
        log.info("`dvc repro --force --single-item collect` asks what ended in an error again, and nothing else")


def dry_run(*, as_json: bool = False) -> None:
    """Print per VLM how many questions would be asked, what they should cost and how long it should take.

    Args:
        as_json: print one JSON document; a source that asks nobody is no mistake then.
    """
    settings, vlms, queries = _read()
    if settings.source != "endpoint":
        if as_json:
            print(json.dumps(as_document([], budget_usd=settings.budget_usd)))
            return
        raise ConfigError(f"--dry-run: collect.source is '{settings.source}', which asks nobody.")
    refuse_without_endpoints(vlms)
    refuse_unpriced_budgets(vlms, settings.limits)
    questions = Questions(queries, images=IMAGES, max_pixels=settings.max_pixels)
    with AnswerStore() as store:
        refuse_new_store_beside_sealed_answers(vlms, store, served_here=set(settings.servers))
        found = forecasts(vlms, questions, queries=queries, store=store)
    if as_json:
        print(json.dumps(as_document(found, budget_usd=settings.budget_usd), ensure_ascii=False))
    else:
        show(found, budget_usd=settings.budget_usd)


def spent(*, as_json: bool = False) -> None:
    """Print what the kept answers cost, by model; without a store, nothing was spent."""
    by_model: list[Spent] = []
    failed_usd = 0.0
    if STORE.exists():
        with AnswerStore() as store:
            by_model, failed_usd = store.spent_by_model()
    if not as_json:
        show_spent(by_model, failed_usd=failed_usd)
        return
    total = sum(each.spent_usd for each in by_model) + failed_usd
    rows = [dataclasses.asdict(each) for each in by_model]
    print(json.dumps({"vlms": rows, "failed_usd": failed_usd, "total_usd": total}, ensure_ascii=False))


def restore_store(tables: Sequence[Path]) -> None:
    """Put the answers of sealed tables into the answer store.

    Args:
        tables: their files; none: those that stand in this tree.
    """
    vlms = load_vlms()
    with AnswerStore() as store:  # table by table: what is an error in one may be an answer in another
        counts = [
            restore(read_table(path, "collect"), vlms=vlms, store=store)
            for path in tables or [FOLDER / f"{pool}.parquet" for pool in POOLS]
        ]
    num_new, num_known = (sum(numbers) for numbers in zip(*counts, strict=True))
    log.info("%d answers restored to %s, %d were there already", num_new, STORE, num_known)


def new_store() -> None:
    """Say that what was sealed here before may be asked again."""
    with AnswerStore() as store:
        store.begin({vlm.endpoint.name for vlm in load_vlms() if vlm.endpoint is not None})
    log.info("`dvc repro` asks what %s does not know", STORE)


def _read() -> tuple[CollectSettings, list[Vlm], pl.DataFrame]:
    settings = load_section("collect", CollectSettings)
    vlms = load_vlms()
    queries = read_table(QUERIES, "queries")
    refuse_unknown_benchmarks(vlms, set(queries["benchmark"]))
    return settings, vlms, queries


def main() -> int:
    """Run the stage, or what an option asks for instead; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.collect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="ask nobody; print how many questions would be asked, their cost and time",
    )
    instead.add_argument(
        "--restore",
        nargs="*",
        type=Path,
        metavar="TABLE",
        help="put the answers of these tables, else of collect/{base,new}.parquet, into the answer store",
    )
    instead.add_argument(
        "--new-store", action="store_true", help="say that what was sealed here before may be asked, and paid, again"
    )
    instead.add_argument("--spent", action="store_true", help="print what the kept answers cost, by model")
    parser.add_argument("--json", action="store_true", help="with --dry-run or --spent: print one JSON document")
    options = parser.parse_args()
    if options.json and not (options.dry_run or options.spent):
        parser.error("--json belongs to --dry-run or --spent")
    instead_of_body: dict[str, Callable[[], None]] = {
        "dry_run": partial(dry_run, as_json=options.json),
        "spent": partial(spent, as_json=options.json),
        "restore": partial(restore_store, options.restore),
        "new_store": new_store,
    }
    for option, work in instead_of_body.items():
        if getattr(options, option) not in (None, False):
            return run_command("collect", work)
    return run_stage("collect", body)


if __name__ == "__main__":
    sys.exit(main())
