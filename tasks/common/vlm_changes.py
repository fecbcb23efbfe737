"""What changed between two lists of VLMs, and what each change makes the pipeline do.

    git show main:params.yaml > before.yaml
    python -m tasks.common.vlm_changes --before before.yaml          # in words
    python -m tasks.common.vlm_changes --before before.yaml --json   # for flows/retrain.py

A block's settings fall into four kinds: what nobody trains on (prices, display name, pace, address), what stands in the
profile sentence, what decides which queries are asked, and what decides an answer and so stands in its key. Which
stages follow is read from dvc.yaml: those that read `vlms`, and all that depend on a table that comes out another one.
How many questions really would be asked, only the answer store knows: `python -m tasks.collect --dry-run`.

The old list may be of another version of this code: what it lacks has its default, settings nobody knows any more count
as changes without an effect. The new list is checked as every stage checks it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from arms_model.errors import ConfigError
from tasks.common.params import PARAMS
from tasks.common.stage import run_command
from tasks.common.vlms import POOLS, Endpoint, Vlm, parse_vlms

Kind = Literal["added", "removed", "changed"]
Effect = Literal["nothing", "profile", "questions", "answers", "pool"]
EFFECTS: tuple[Effect, ...] = ("nothing", "profile", "questions", "answers", "pool")  # each with those before it
DOES: dict[Effect, str] = {
    "nothing": "nothing that was trained changes and nobody is asked; figures and the report are made anew",
    "profile": "its profile sentence becomes another: the routers that learned it are trained again, nobody is asked",
    "questions": "other queries are asked of it; known answers are kept; the routers that learned it are trained again",
    "answers": "its answers are others: it is asked again, and the routers that learned it are trained again",
    "pool": "it changes pools: the base router and all after it are trained again; known answers are kept",
}
DVC = Path("dvc.yaml")
_PROFILE = (
    "profile_name", "provider", "params_b", "architecture", "language_model", "vision_model", "languages", "released",
)  # fmt: skip
_QUESTIONS = ("sample", "sample_from", "whole_benchmarks", "benchmarks")
_ANSWERS = ("name", "model", "system", "prompt", "generation", "image_detail", "max_side")  # of `endpoint`: in the key
_PER_POOL = ("profiles", "collect", "label")  # a table per pool; the other pool's comes out as it was


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of one VLM that has another value.

    Attributes:
        setting: its name, `endpoint.model` inside of `endpoint`.
        before: its old value.
        after: its new value.
        effect: what follows.
    """

    setting: str
    before: Any
    after: Any
    effect: Effect


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happened to one VLM.

    Attributes:
        vlm: its name.
        display_name: what pages call it.
        pool: its pool, the new one where it moved.
        kind: what happened.
        settings: which settings have other values; none where it was added or removed.
        effect: the furthest of the settings' effects; None where it was added or removed.
        does: what follows, in words.
        stages: the most that can run because of it, in the order of dvc.yaml.
    """

    vlm: str
    display_name: str
    pool: str
    kind: Kind
    settings: tuple[Setting, ...]
    effect: Effect | None
    does: str
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All that happened.

    Attributes:
        vlms: every VLM of the new list: its name and pool.
        changes: those that something happened to, by name.
        sections: the other sections of params that have changed.
        asks: whether the new params ask endpoints at all.
    """

    vlms: dict[str, str]
    changes: tuple[Change, ...]
    sections: tuple[str, ...]
    asks: bool


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, stages: Mapping[str, Any]) -> Changes:
    """Hold two params against each other.

    Args:
        before: the old params as YAML gives them.
        after: the new ones.
        stages: section `stages` of dvc.yaml.

    Raises:
        ConfigError: the new list of VLMs breaks its rules, or the old one is no list of blocks with names.
    """
    new = {vlm.name: asdict(vlm) for vlm in parse_vlms(after.get("vlms"))}
    old = _old_blocks(before.get("vlms"))
    is_sampled_by_base = any(block["sample_from"] == "answered_by_base" for block in new.values())
    collect = after.get("collect")
    asks = isinstance(collect, dict) and collect.get("source") == "endpoint"
    changes = []
    for name in sorted({*old, *new}):
        found = _change(old.get(name), new.get(name), asks=asks)
        if found is not None:
            pools = {str(blocks[name]["pool"]) for blocks in (old, new) if name in blocks}
            effect = max((setting.effect for setting in found[1]), key=EFFECTS.index, default=None)
            follows = follow(stages, _tables(effect, pools, is_sampled_by_base=is_sampled_by_base))
            changes.append(_described(new.get(name) or old[name], *found, effect=effect, stages=follows))
    names = sorted({*before, *after} - {"vlms"})
    return Changes(
        vlms={name: str(block["pool"]) for name, block in new.items()},
        changes=tuple(changes),
        sections=tuple(name for name in names if before.get(name) != after.get(name)),
        asks=asks,
    )


def _described(
    block: Mapping[str, Any],
    kind: Kind,
    settings: tuple[Setting, ...],
    *,
    effect: Effect | None,
    stages: tuple[str, ...],
) -> Change:
    pool = str(block["pool"])
    return Change(
        vlm=str(block["name"]),
        display_name=str(block["display_name"]),
        pool=pool,
        kind=kind,
        settings=settings,
        effect=effect,
        does=DOES[effect] if effect else _DOES_WHOLE[kind, pool],
        stages=stages,
    )


_DOES_WHOLE: dict[tuple[Kind, str], str] = {
    ("added", "new"): "it alone is asked; both new-pool routers learn it, the base router stays as it is",
    ("added", "base"): "it alone is asked; it is in pool base, so the base router is trained again, and all after it",
    (
        "removed",
        "new",
    ): "it is no longer chosen; its labels leave the tables at the next training",
    ("removed", "base"): "it is no longer chosen; its labels leave the tables at the next training, which then trains "
    "the base router again, too",
}


def _change(
    old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, *, asks: bool
) -> tuple[Kind, tuple[Setting, ...]] | None:
    if old is None:
        return "added", ()
    if new is None:
        return "removed", ()
    before, after = _flat(old), _flat(new)
    settings = tuple(
        Setting(setting=key, before=before.get(key), after=after.get(key), effect=_effect(key, asks=asks))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )
    return ("changed", settings) if settings else None


def _effect(setting: str, *, asks: bool) -> Effect:
    if setting == "pool":
        return "pool"
    if setting in _PROFILE:
        return "profile"
    if setting in _QUESTIONS:
        return "questions"
    section, _, inner = setting.partition(".")
    return "answers" if asks and section == "endpoint" and inner in _ANSWERS else "nothing"


def _flat(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block's settings by name, those of `endpoint` with a dot, as far as they can make a difference."""
    flat = {key: value for key, value in block.items() if key != "endpoint"}
    flat["profile_name"] = block["profile_name"] or block["name"]
    endpoint = block["endpoint"]
    if endpoint is None:
        return flat
    generation = {key: value for key, value in (endpoint["generation"] or {}).items() if value is not None}
    inner = endpoint | {"generation": generation}
    return flat | {f"endpoint.{key}": value for key, value in inner.items()}


def _old_blocks(blocks: Any) -> dict[str, dict[str, Any]]:
    """The old blocks by name, with defaults for what they lack."""
    if not isinstance(blocks, list) or any(not isinstance(block, dict) or "name" not in block for block in blocks):
        raise ConfigError("vlms of the old params is no list of blocks with names; compare with a list that is one.")
    return {str(block["name"]): _with_defaults(block) for block in blocks}


def _with_defaults(block: Mapping[str, Any]) -> dict[str, Any]:
    needed = {"display_name": block["name"], "provider": "", "pool": "base"}
    whole: dict[str, Any] = {**_defaults(Vlm), **needed, **block}
    endpoint = whole.get("endpoint")
    whole["endpoint"] = {**_defaults(Endpoint), **endpoint} if isinstance(endpoint, dict) else None
    return whole


def _defaults(of: type[Vlm] | type[Endpoint]) -> dict[str, Any]:
    made: dict[str, Any] = {
        field.name: field.default_factory() for field in fields(of) if field.default_factory is not MISSING
    }
    return made | {field.name: field.default for field in fields(of) if field.default is not MISSING}


def _tables(effect: Effect | None, pools: Collection[str], *, is_sampled_by_base: bool) -> set[str]:
    """The tables per pool that may come out as others."""
    if effect == "nothing":
        return set()
    if effect == "profile":
        return {f"profiles/{pool}.parquet" for pool in pools}
    if is_sampled_by_base and "base" in pools:
        pools = POOLS  # what the base pool answers rightly decides what the others are asked
    touched = _PER_POOL if effect in (None, "pool") else ("collect", "label")
    return {f"{table}/{pool}.parquet" for table in touched for pool in pools}


def follow(stages: Mapping[str, Any], changed: Collection[str]) -> tuple[str, ...]:
    """The stages that may run: those that read `vlms`, and what depends on what they change.

    Args:
        stages: section `stages` of dvc.yaml.
        changed: the tables per pool that come out as others.

    Returns:
        Names, in the order of dvc.yaml.
    """
    running = {name for name, stage in stages.items() if "vlms" in stage.get("params", ())}
    while True:
        files = {out for name in running for out in _outs(stages[name]) if _is_passed_on(out, changed)}
        more = {name for name, stage in stages.items() if any(_meets(dep, files) for dep in stage.get("deps", ()))}
        if more <= running:
            return tuple(name for name in stages if name in running)
        running |= more


def _outs(stage: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, ()):
            yield next(iter(out)) if isinstance(out, dict) else str(out)


def _is_passed_on(out: str, changed: Collection[str]) -> bool:
    return out in changed if out.split("/")[0] in (*_PER_POOL, "gates") else True


def _meets(dep: str, files: Collection[str]) -> bool:
    return any(dep == file or file.startswith(f"{dep}/") or dep.startswith(f"{file}/") for file in files)


def as_text(found: Changes) -> str:
    """What people read."""
    if not found.changes and not found.sections:
        return "nothing changed"
    lines = []
    for change in found.changes:
        lines.append(f"{change.vlm} ({change.pool}): {change.kind}; {change.does}")
        lines += [f"  {each.setting}: {each.before!r} -> {each.after!r}" for each in change.settings]
        lines.append(f"  stages that may run: {', '.join(change.stages)}")
    if found.sections:
        lines.append(f"other sections of params that changed: {', '.join(found.sections)}")
    return "\n".join(lines)


def read_params(path: Path) -> dict[str, Any]:
    """A params file as YAML gives it.

    Raises:
        ConfigError: no such file, no YAML, or no mapping of sections.
    """
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; name a params file.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected sections, got {type(found).__name__}; name a params file.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two params files; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.common.vlm_changes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=Path, required=True, metavar="FILE", help="the old params")
    parser.add_argument(
        "--after", type=Path, default=PARAMS, metavar="FILE", help="the new ones (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)

    def work() -> None:
        logging.getLogger().setLevel(logging.WARNING)
        found = compare(read_params(options.before), read_params(options.after), stages=read_params(DVC)["stages"])
        print(json.dumps(asdict(found), default=str) if options.json else as_text(found))

    return run_command("vlm_changes", work)


if __name__ == "__main__":
    sys.exit(main())
