"""What is told about a registered version: its tags, its model card and what MLflow needs to load it."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from arms_model.answering import ServedRouter
from arms_model.errors import ConfigError
from tasks.common.cards import TESTED, CardInputs, em_text, method_of, model_card, rows_of
from tasks.common.dataset import load_queries, load_splits
from tasks.common.params import raw_section
from tasks.common.stage_inputs import StageFiles
from tasks.common.tables import read_table

EVALUATION = "cascade_eval"


@dataclass(frozen=True, kw_only=True)
class VersionNotes:
    """What is told about a version.

    Attributes:
        tags: by name.
        card: Markdown.
        requirements: of pip.
    """

    tags: dict[str, str]
    card: str
    requirements: tuple[str, ...]


def version_notes(
    entry: dict[str, Any], served: ServedRouter, *, model: str, run_tags: Mapping[str, str]
) -> VersionNotes:
    """Tags, card and requirements of one strategy, from the stages' files.

    Args:
        entry: of `cascade_eval/selection.json`.
        served: what is served.
        model: its name in the registry.
        run_tags: of the run that made it: the commit it was made from.
    """
    table = pl.read_csv(Path(EVALUATION) / "table.csv", infer_schema_length=None)
    data = json.dumps(StageFiles().of_outputs(EVALUATION).data, sort_keys=True)
    data_hash = hashlib.sha256(data.encode()).hexdigest()[:16]
    commit = run_tags.get("arms.git_commit", "unknown")
    queries = load_queries()
    counts = pl.DataFrame({"benchmark": queries["benchmark"], "split": load_splits(queries)})
    base, new = (read_table(Path(f"label/{pool}.parquet"), "label").height for pool in ("base", "new"))
    card = model_card(
        CardInputs(
            model=model,
            entry=entry,
            served=served,
            table=table,
            counts=counts.group_by("benchmark", "split").len(),
            num_labels=(base, new),
            data=data_hash,
            commit=commit,
            is_sandbox=raw_section("queries").get("source") == "sandbox",
        )
    )
    tags = {
        "arms.tau": "none" if entry["tau"] is None else f"{entry['tau']:g}",
        "arms.vlms": ", ".join(served.vlms),
        "arms.num_vlms": str(len(served.vlms)),
        "arms.routers": ", ".join(entry["routers"]),
        "arms.data": data_hash,
        "arms.git_commit": commit,
        "arms.git_dirty": run_tags.get("arms.git_dirty", "unknown"),
        **em_tags(entry, table),
    }
    return VersionNotes(tags=tags, card=card, requirements=requirements_of(served))


def em_tags(entry: dict[str, Any], table: pl.DataFrame) -> dict[str, str]:
    """Macro EM with its interval on held-out training queries and on the test splits."""
    pool, method = method_of(entry)
    tags = {} if entry["em"] is None else {"arms.em.held_out": em_text(entry)}
    for split in TESTED:
        row = rows_of(table, split=split, pool=pool).get(method)
        if row is not None:
            tags[f"arms.em.{split}"] = em_text(row)
    return tags


def requirements_of(served: ServedRouter) -> tuple[str, ...]:
    """What MLflow's way of loading needs, pinned to what is installed here.

    The library itself is left out: as long as no package index has it, its name there is anybody's.

    Raises:
        ConfigError: the project is not installed.
    """
    kinds = {
        settings.kind
        for router in served.routers
        for settings in (*router.config.question_encoders.values(), *router.config.picture_encoders.values())
    }
    try:
        lines = importlib.metadata.requires("arms-router") or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("the project is not installed in this environment; `make install` does it.") from None
    names = ["pandas"]
    for line in lines:
        extra = re.search(r"extra == '([^']+)'", line)
        if extra is None or extra[1] in {*kinds, "registry"}:
            names.append(re.split(r"[^\w.-]", line, maxsplit=1)[0])
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in names}
    return tuple(f"{name}=={version}" for name, version in sorted(versions.items()))
