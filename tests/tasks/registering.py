"""The registry of the current folder's tree, and labels that make its champion or its challenger win."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from mlflow import MlflowClient

from arms_model.registry import Registry
from tasks.common import championship
from tasks.common.gate_split import load_gate_split
from tasks.common.registering import LOCK
from tasks.common.routers import router_vectors
from tasks.common.tracking import tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from arms_model.answering import ServedRouter
    from arms_model.registry import Version
    from tasks.common.gate_split import GateSplit
    from tests.conftest import Tree

STRATEGIES = ["base", "incremental", "base + independent", "base + incremental"]
MODEL = "arms-router"


def registry() -> Registry:
    return Registry(tracking_uri(), model=MODEL, lock=LOCK)


def versions() -> list[Version]:
    return registry().versions()


def client() -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri(), registry_uri=tracking_uri())


def fake_labels(tree: Tree, right: Callable[[int], str]) -> None:
    """Put all queries on the gate; right is only what one version chooses for a query: `champion` or `challenger`.

    On every second drawing the best base VLM of the benchmark has no label, so that the versions differ.
    """
    labels = tree.table("label/base")
    is_best = pl.col("vlm").is_in(["toy-colour-2b", "toy-count-2b", "toy-even-7b"])
    labels.filter(~(is_best & (pl.col("query_id").str.tail(3).cast(int) // 2 % 2 == 1))).write_parquet(
        "label/base.parquet"
    )
    tree.table("split/split").with_columns(split=pl.lit("gate")).write_parquet("split/split.parquet")
    for pool in ("base", "new"):
        answers = tree.table(f"collect/{pool}")
        answers.with_columns(imported_correct=pl.lit(None, pl.Boolean)).write_parquet(f"collect/{pool}.parquet")
    gate = load_gate_split("image_group")
    labelled = ~np.isnan(gate.correct)
    chosen = {alias: choices(registry().load(alias), gate, labelled) for alias in ("champion", "challenger")}
    queries = gate.queries["query_id"].to_list()
    wanted = {query: chosen[right(number)][number] for number, query in enumerate(queries)}
    for pool in ("base", "new"):
        labels = tree.table(f"label/{pool}")
        correct = [wanted[query] == vlm for query, vlm in labels.select("query_id", "vlm").iter_rows()]
        labels.with_columns(correct=pl.Series(correct)).write_parquet(f"label/{pool}.parquet")


def choices(served: ServedRouter, gate: GateSplit, labelled: np.ndarray) -> list[str]:
    """The VLM that a version chooses for each query of the gate."""
    columns = [gate.vlms.index(vlm) for vlm in served.vlms]
    scores = served.confidences([router_vectors(router, gate.queries) for router in served.routers])
    return [served.vlms[column] for column in served.choose(scores, labelled[:, columns]).column]


def promote(**given: Any) -> None:
    championship.promote(**({"number": None, "why": None, "force": False, "yes": True} | given))
