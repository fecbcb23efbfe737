"""What is told about a registered version: its tags, its model card and what MLflow needs to load it."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from arms_model.answering import ServedRouter
from arms_model.errors import ConfigError
from arms_model.logged_model import MAX_DESCRIPTION
from tasks.common.cards import CardInputs, em_text, method_of, model_card, rows_of
from tasks.common.dataset import load_queries, load_splits
from tasks.common.params import raw_section
from tasks.common.stage_inputs import StageFiles
from tasks.common.tables import TEST_SPLITS, read_table

EVALUATION = "cascade_eval"
RETIRED = "arms.retired"  # tag: VLMs that the routers know and that are not chosen any more
RETIRED_FROM = "arms.retired_from"  # tag: digest of the version that trained routers were registered as


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
        run_tags: of the run that made it: the commit, and whether that is of the run or of its recording.
    """
    table = pl.read_csv(Path(EVALUATION) / "table.csv", infer_schema_length=None)
    data = data_hash(entry["routers"])
    commit, recorded_by = (run_tags.get(f"arms.{name}", "unknown") for name in ("git_commit", "recorded_by"))
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
            data=data,
            commit=commit,
            is_recorded_later=recorded_by == "register",
            is_sandbox=raw_section("queries").get("source") == "sandbox",
        )
    )
    tags = {
        "arms.tau": "none" if entry["tau"] is None else f"{entry['tau']:g}",
        "arms.vlms": ", ".join(served.vlms),
        "arms.num_vlms": str(len(served.vlms)),
        "arms.routers": ", ".join(entry["routers"]),
        "arms.data": data,
        "arms.git_commit": commit,
        "arms.git_dirty": run_tags.get("arms.git_dirty", "unknown"),
        "arms.recorded_by": recorded_by,
        **em_tags(entry, table),
    }
    return VersionNotes(tags=tags, card=card, requirements=requirements_of(served))


def notes_after_retiring(
    notes: VersionNotes, served: ServedRouter, *, names: Sequence[str], source: tuple[int, str], why: str
) -> VersionNotes:
    """What is told about a version that is another with VLMs out of its selection space.

    Args:
        notes: of that other one.
        served: what is served now.
        names: that were taken out now.
        source: number and digest of the other one.
        why: in words.
    """
    number, digest = source
    kept = {name: value for name, value in notes.tags.items() if not name.startswith("arms.em.")}
    tags = kept | {
        "arms.vlms": ", ".join(served.vlms),
        "arms.num_vlms": str(len(served.vlms)),
        RETIRED: ", ".join(served.retired),
        RETIRED_FROM: kept.get(RETIRED_FROM, digest),
    }
    note = (
        f"**Retired: {', '.join(names)}** ({why}). The routers are those of version {number}, which this card "
        "describes: its figures are with what was retired."
    )
    card = f"{note}\n\n{notes.card}"
    card = card if len(card) <= MAX_DESCRIPTION else card[: MAX_DESCRIPTION - 1] + "…"
    return VersionNotes(tags=tags, card=card, requirements=notes.requirements)


def data_hash(stages: Sequence[str]) -> str:
    """16 hexadecimal digits that name the data some routers were trained on.

    These are queries, split and vectors, labels and profiles of the pools that the routers learned; neither params nor
    the routers themselves, so that another learning rate has the same data.

    Args:
        stages: that trained them.

    Raises:
        DataError: an output of theirs is missing.
    """
    files = StageFiles()
    read = {path: md5 for stage in stages for path, md5 in files.of_outputs(stage).data.items()}
    data = {path: md5 for path, md5 in read.items() if not path.startswith("models/")}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def em_tags(entry: dict[str, Any], table: pl.DataFrame) -> dict[str, str]:
    """Macro EM with its interval on held-out training queries and on the test splits."""
    pool, method = method_of(entry)
    tags = {} if entry["em"] is None else {"arms.em.held_out": em_text(entry)}
    for split in TEST_SPLITS:
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
