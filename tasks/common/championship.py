"""Commands that change the champion or say who it is: promote, retire, rollback, champion. See `tasks/register.py`."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from arms_model.answering import ServedRouter
from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.history import MAX_WHY, checked_why
from arms_model.logged_model import INSIDE
from arms_model.promotion import Verdict
from arms_model.registry import CHALLENGER, CHAMPION, Origin, Registry, Version
from arms_model.served import load_served, save_retired
from tasks.common.decisions import Conclusion, Decision, Said
from tasks.common.gate_split import judge, load_gate_split, verdict_lines
from tasks.common.params import load_group_by, load_section, load_seed
from tasks.common.registering import STAGE, RegisterSettings, described, now, open_registry, who
from tasks.common.tracking import tracking_uri
from tasks.common.version_notes import RETIRED, RETIRED_FROM, VersionNotes, notes_after_retiring, requirements_of


def promote(
    *, number: int | None, why: str | None, force: bool, yes: bool, propose: bool = False, as_json: bool = False
) -> None:
    """Compare a version with the champion, and make it the champion if the rule or a person says so.

    Args:
        number: of the version; None for the challenger.
        why: kept in the history.
        force: whatever the comparison says.
        yes: ask nobody.
        propose: change nothing.
        as_json: print one document; then a decision against the version is no error.

    Raises:
        ConfigError: --force without --why, or nobody to confirm.
        DataError: refused or inconclusive, or there is nothing to compare.
    """
    if force and not why:
        raise ConfigError("--force overrules the comparison: say why with --why TEXT; it is written into the history.")
    if as_json and not (yes or force or propose):
        raise ConfigError("with --json nobody is asked: add --yes, or --propose to change nothing.")
    settings = load_section(STAGE, RegisterSettings)
    registry = open_registry(settings)
    champion, found = registry.alias(CHAMPION), registry.history()
    if (champion and champion.number) != found.champion and not force:
        raise StorageError(registry.says_otherwise(found, champion))
    if champion is None and not found.texts:
        raise DataError(f"{registry.model} has no champion to compare with; run `python -m tasks.register` first.")
    said = Said(is_shown=not as_json)
    version = registry.alias(CHALLENGER) if number is None else registry.find(str(number))
    if champion is not None and (version is None or version.number == champion.number == found.champion):
        against = f"version {champion.number} is the champion already; nothing to do."
        if version is None:
            against = f"{registry.model} has no challenger: what the held-out queries pick is the champion already."
        conclusion = _conclusion("nothing to compare", champion, champion, None)
        picked = champion.tags.get(RETIRED_FROM, champion.digest)
        dataclasses.replace(conclusion, challenger=None, challenger_digest=picked).tell(said, against=against)
        return
    version = version or registry.find(CHALLENGER)  # which says that there is none
    new = registry.verify(version)
    said(f"challenger: version {version.number}, {described(new)}")
    verdict, reason = None, why or ""
    if champion is not None and not force:
        old = registry.verify(champion)
        said(f"champion:   version {champion.number}, {described(old)}")
        verdict = _judged(old, new, settings, said)
        if against := _against(verdict, old, new):
            decision: Decision = "inconclusive" if against == "inconclusive" else "refused"
            against = f"{against}: version {champion.number} stays the champion."
            _conclusion(decision, champion, version, verdict).tell(said, against=against)
            return
        reason = "; ".join(filter(None, [reason, _in_words(verdict)]))
        if propose:
            said(f"the rule would make version {version.number} the champion; nothing was changed")
            _conclusion("proposed", champion, version, verdict).tell(said)
            return
    confirm(f"make version {version.number} the champion", yes=yes or force)
    entry = registry.promote(version, who=who(), when=now(), why=reason, champion=champion, forced=force)
    said(f"version {version.number} is the champion of {registry.model} now (entry {entry.number} of the history)")
    _conclusion("promoted", version, version, verdict).tell(said)


def _judged(old: ServedRouter, new: ServedRouter, settings: RegisterSettings, said: Said) -> Verdict:
    """Hold the challenger against the champion, and say what that gave."""
    verdict = judge(
        load_gate_split(load_group_by()),
        champion=old,
        challenger=new,
        margin=settings.margin,
        level=settings.level,
        draws=settings.draws,
        seed=load_seed(),
    )
    for line in verdict_lines(verdict, num_vlms=len({*old.vlms, *new.vlms})):
        said(line)
    return verdict


def _against(verdict: Verdict, old: ServedRouter, new: ServedRouter) -> str:
    """Why the challenger does not become the champion; "" where it does."""
    if verdict.decision != "promote":
        return verdict.decision
    if back := sorted({*old.retired} & {*new.vlms}):
        return (
            f"refuse, for it would bring back what was retired from the champion: {', '.join(back)}; take that out of "
            "`params.yaml: vlms` and train again, or want it back: --force --why TEXT"
        )
    return ""


def _in_words(verdict: Verdict) -> str:
    difference = verdict.difference
    return (
        f"macro EM on split gate {difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] over "
        f"{verdict.num_queries} queries"
    )


def _conclusion(decision: Decision, champion: Version, version: Version, verdict: Verdict | None) -> Conclusion:
    """With the champion that there is afterwards."""
    return Conclusion(
        decision=decision,
        champion=champion.number,
        champion_digest=champion.digest,
        challenger=version.number,
        challenger_digest=version.digest,
        difference=verdict.difference if verdict else None,
        num_queries=verdict.num_queries if verdict else None,
    )


def retire(names: list[str], *, why: str, as_json: bool = False) -> None:
    """Take VLMs out of what the champion chooses from: a new version with the same routers becomes the champion.

    Raises:
        ConfigError: a name that the champion does not choose from, or all that it does.
        DataError: there is no champion.
        StorageError: the champion is damaged, or is not the one of the history.
    """
    why = checked_why(why)
    registry = open_registry(load_section(STAGE, RegisterSettings))
    champion, found = registry.alias(CHAMPION), registry.history()
    if (champion and champion.number) != found.champion:
        raise StorageError(registry.says_otherwise(found, champion))
    if champion is None:
        raise DataError(f"{registry.model} has no champion; run `python -m tasks.register` first.")
    said = Said(is_shown=not as_json)
    with tempfile.TemporaryDirectory(prefix="arms-retire-") as temporary:
        source, folder = Path(temporary) / "source", Path(temporary) / "served"
        source.mkdir()
        folder.mkdir()
        served = registry.fetch(champion, source)
        if leaving := sorted({*names} - {*served.retired}):
            save_retired(folder, source=source / INSIDE, vlms=leaving)
            served = load_served(folder)
            origin = _origin_after_retiring(registry, champion, served, leaving, why)
            former, (champion, _) = champion, registry.register(folder, origin)
            registry.promote(
                champion, who=who(), when=now(), why=_retired_words(leaving, why), champion=former, action="retire"
            )
            said(
                f"{', '.join(leaving)} retired: version {champion.number} of {registry.model}, the routers of version "
                f"{former.number} with {len(served.vlms)} VLMs to choose from, is the champion now"
            )
        else:
            said(f"{', '.join(served.retired)}: retired already; version {champion.number} stays the champion")
    said.document(
        {
            "decision": "retired" if leaving else "nothing to retire",
            "model": registry.model,
            "version": champion.number,
            "digest": champion.digest,
            "retired": list(served.retired),
            "vlms": list(served.vlms),
        }
    )


def _origin_after_retiring(
    registry: Registry, champion: Version, served: ServedRouter, names: list[str], why: str
) -> Origin:
    before = registry.origin(champion, requirements=requirements_of(served))
    notes = VersionNotes(tags=dict(before.tags), card=before.description, requirements=before.requirements)
    notes = notes_after_retiring(notes, served, names=names, source=(champion.number, champion.digest), why=why)
    return dataclasses.replace(before, tags=notes.tags, description=notes.card)


def _retired_words(names: list[str], why: str) -> str:
    """For the history, which keeps so many characters and no more."""
    return f"retired {', '.join(names)}: {why}"[:MAX_WHY]


def champion(*, as_json: bool = False) -> None:
    """Print what is served, since when, by whom and why.

    Raises:
        StorageError: the champion is damaged, or is not the one of the history.
    """
    settings = load_section(STAGE, RegisterSettings)
    uri = tracking_uri()
    is_there = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
    registry = open_registry(settings) if is_there else None  # looking makes no store
    version = registry.alias(CHAMPION) if registry else None
    found = registry.history() if registry else None
    if registry and found and (version and version.number) != found.champion:
        raise StorageError(registry.says_otherwise(found, version))
    if registry is None or found is None or version is None:
        print("null" if as_json else f"{settings.model} has no champion yet; `python -m tasks.register` makes one")
        return
    served, entry = registry.verify(version), found.entries[-1]
    if as_json:
        document = {
            "model": registry.model,
            "version": version.number,
            "digest": version.digest,
            "strategy": served.strategy,
            "tau": served.tau,
            "vlms": list(served.vlms),
            "retired": list(served.retired),
            "since": entry.when,
            "who": entry.who,
            "why": entry.why,
        }
        print(json.dumps(document, ensure_ascii=False))
        return
    print(f"version {version.number} of {registry.model}: {described(served)}, digest {served.digest[:12]}")
    print(f"since {entry.when}, by {entry.who} ({entry.action}): {entry.why}")
    print(f"VLMs: {', '.join(served.vlms)}")
    if served.retired:
        print(f"retired: {', '.join(served.retired)}")


def rollback(*, why: str) -> None:
    """Back to the champion before."""
    registry = open_registry(load_section(STAGE, RegisterSettings))
    former = registry.alias(CHAMPION)
    entry = registry.rollback(who=who(), when=now(), why=why)
    print(f"version {entry.to_version} is the champion of {registry.model} again (entry {entry.number} of the history)")
    retired = set(former.tags.get(RETIRED, "").split(", ")) if former else set()
    if back := sorted(retired & set(registry.find(str(entry.to_version)).tags.get("arms.vlms", "").split(", "))):
        print(
            f"it chooses again what was retired since: {', '.join(back)}; "
            "`python -m tasks.register retire` takes it out of this version, too"
        )


def confirm(what: str, *, yes: bool) -> None:
    """Ask on a terminal, unless `yes`.

    Raises:
        ConfigError: there is nobody to ask, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"to {what} without being asked, add --yes.")
    if input(f"{what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was changed.")
