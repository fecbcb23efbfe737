"""What the report is made from: the files that the stages before it left, read once, checked, and joined.

Everything here comes from files; nothing is trained or scored anew. Labels are those that `cascade_eval` scores
against: the source's own verdict where it gives one, else ours.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.errors import DataError
from tasks.common.files import read_json
from tasks.common.params import STAGES, load_seed
from tasks.common.strategies import STAGE_OF, Scores, Strategy
from tasks.common.tables import read_table, strategy_row
from tasks.common.vlms import POOLS, Vlm, load_vlms

HASHED = (
    "queries/queries.parquet", "profiles/base.parquet", "profiles/new.parquet", "collect/base.parquet",
    "collect/new.parquet", "label/base.parquet", "label/new.parquet", "split/split.parquet",
    "cascade_eval/confidences.parquet", "cascade_eval/table.csv",
)  # fmt: skip
_TEXT_COLUMNS = {"split", "pool", "without_candidate", "benchmark", "method", "kind", "strategy", "name", "prices"}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A way to serve, of `cascade_eval/selection.json`.

    Attributes:
        strategy: as `tasks.common.strategies` has it.
        row: its name in `cascade_eval/table.csv`.
        em: on the held-out queries that the choice was made on; None where there were none. So its interval.
        em_low: lower end.
        em_high: upper end.
    """

    strategy: Strategy
    row: str
    em: float | None
    em_low: float | None
    em_high: float | None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that the report shows, as the files have it.

    Attributes:
        seed: `base.seed`.
        vlms: the blocks of params, sorted by name; the columns' order everywhere here.
        display_names: by VLM name.
        queries: table `queries` with column `split`, sorted by query_id: the rows' order everywhere here.
        answers: what every VLM answered: query_id, vlm, output, predicted, correct (the label that is scored).
        scored: (N, K) float32 labels that are scored; NaN where not asked.
        scores: (N, K) confidences of each router; NaN outside the splits gate, test_id, test_ood.
        table: `cascade_eval/table.csv`.
        tau: `cascade_eval/tau.csv`.
        cost: `cascade_eval/cost.csv`.
        served: the ways to serve; the first is the one that the held-out queries picked.
        num_held_out: queries that it was picked on.
        curves: `curves/<stage>.csv` by router.
        metrics: `metrics/<stage>.json` by router.
        gates: `gates/<stage>.json` in the stages' order.
        hashes: SHA-256 of the tables, by path.
    """

    seed: int
    vlms: tuple[Vlm, ...]
    display_names: dict[str, str]
    queries: pl.DataFrame
    answers: pl.DataFrame
    scored: NDArray[np.float32]
    scores: Scores
    table: pl.DataFrame
    tau: pl.DataFrame
    cost: pl.DataFrame
    served: tuple[Served, ...]
    num_held_out: int
    curves: dict[str, pl.DataFrame]
    metrics: dict[str, dict[str, Any]]
    gates: tuple[dict[str, Any], ...]
    hashes: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The K VLMs' names."""
        return tuple(vlm.name for vlm in self.vlms)

    @property
    def is_base(self) -> NDArray[np.bool_]:
        """(K,) whether a VLM is of pool base."""
        return np.asarray([vlm.pool == "base" for vlm in self.vlms])

    @property
    def widest_pool(self) -> str:
        """`extended` where there are new VLMs, else `base`."""
        return "base" if self.is_base.all() else "extended"

    @property
    def picked(self) -> Served:
        """What the held-out queries picked."""
        return self.served[0]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Rows of a split's queries that some VLM has a label for."""
        labelled = (~np.isnan(self.scored)).any(axis=1)
        return np.flatnonzero((self.queries["split"] == split).to_numpy() & labelled)


def read_inputs() -> Inputs:
    """Read everything from the current folder.

    Raises:
        ArmsError: a missing or broken file.
    """
    vlms = tuple(load_vlms())
    names = [vlm.name for vlm in vlms]
    queries = _queries()
    query_ids = queries["query_id"].to_list()
    answers = _answers(names)
    served, num_held_out = _served(read_json(Path("cascade_eval/selection.json")))
    return Inputs(
        seed=load_seed(),
        vlms=vlms,
        display_names={vlm.name: vlm.display_name for vlm in vlms},
        queries=queries,
        answers=answers,
        scored=as_matrix(answers.with_columns(pl.col("correct").cast(pl.Float32)), "correct", query_ids, names),
        scores=_scores(query_ids, names),
        table=_csv("cascade_eval/table.csv"),
        tau=_csv("cascade_eval/tau.csv"),
        cost=_csv("cascade_eval/cost.csv"),
        served=served,
        num_held_out=num_held_out,
        curves={router: _csv(f"curves/{stage}.csv") for router, stage in STAGE_OF.items()},
        metrics={router: read_json(Path(f"metrics/{stage}.json")) for router, stage in STAGE_OF.items()},
        gates=tuple(read_json(path) for stage in STAGES if (path := Path(f"gates/{stage}.json")).exists()),
        hashes={path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in HASHED},
    )


def as_matrix(rows: pl.DataFrame, value: str, query_ids: Sequence[str], vlms: Sequence[str]) -> NDArray[np.float32]:
    """Rows of pairs as a matrix (N, K) float32, NaN where there is none.

    Args:
        rows: query_id, vlm and the column `value`; pairs of other queries or VLMs are left out.
        value: a column of numbers.
        query_ids: N names.
        vlms: K names.
    """
    of_query = pl.DataFrame({"query_id": query_ids}, schema={"query_id": pl.String}).with_row_index("row")
    of_vlm = pl.DataFrame({"vlm": vlms}, schema={"vlm": pl.String}).with_row_index("column")
    placed = rows.select("query_id", "vlm", value).join(of_query, on="query_id").join(of_vlm, on="vlm")
    matrix = np.full((len(query_ids), len(vlms)), np.nan, dtype=np.float32)
    matrix[placed["row"].to_numpy(), placed["column"].to_numpy()] = placed[value].cast(pl.Float32).to_numpy()
    return matrix


def _queries() -> pl.DataFrame:
    queries = read_table(Path("queries/queries.parquet"), "queries").sort("query_id")
    return queries.join(
        read_table(Path("split/split.parquet"), "split"), on="query_id", how="left", maintain_order="left"
    )


def _answers(vlms: Sequence[str]) -> pl.DataFrame:
    collected, labelled = (
        pl.concat([read_table(Path(f"{table}/{pool}.parquet"), table) for pool in POOLS])
        for table in ("collect", "label")
    )
    joined = labelled.join(collected, on=["query_id", "vlm"], how="left", maintain_order="left")
    return joined.filter(pl.col("vlm").is_in(vlms)).select(
        "query_id", "vlm", "output", "predicted", pl.coalesce("imported_correct", "correct").alias("correct")
    )


def _scores(query_ids: Sequence[str], vlms: Sequence[str]) -> Scores:
    rows = read_table(Path("cascade_eval/confidences.parquet"), "confidence")
    parts = rows.partition_by("router", as_dict=True)
    if ("base",) not in parts:
        raise DataError("cascade_eval/confidences.parquet: no confidences of router 'base'; run `dvc repro`.")
    matrices = {
        router: as_matrix(parts[(router,)], "confidence", query_ids, vlms) if (router,) in parts else None
        for router in STAGE_OF
    }
    return Scores(**matrices)  # type: ignore[arg-type]


def _served(selection: dict[str, Any]) -> tuple[tuple[Served, ...], int]:
    router_of = {stage: router for router, stage in STAGE_OF.items()}
    served = {}
    for entry in selection["strategies"]:
        tau = None if entry["tau"] is None else float(entry["tau"])
        strategy = Strategy(routers=tuple(router_of[stage] for stage in entry["routers"]), tau=tau)
        em = {name: entry[name] for name in ("em", "em_low", "em_high")}
        served[entry["strategy"]] = Served(strategy=strategy, row=strategy_row(strategy.name, tau), **em)
    picked = served.pop(selection["challenger"])
    return (picked, *served.values()), int(selection["num_queries"])


def _csv(path: str) -> pl.DataFrame:
    """A CSV file of the stages: text columns by name, all others numbers; empty cells and NaN are null."""
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (`dvc repro`).") from None
    texts = [name for name in frame.columns if name in _TEXT_COLUMNS]
    return frame.with_columns(
        pl.exclude(texts).cast(pl.Float64).fill_nan(None), *(pl.col(name).fill_null("") for name in texts)
    )
