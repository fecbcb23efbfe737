"""Stage `register`: bring MLflow up to date with what the stages left in files; and the registry's commands.

    python -m tasks.register                       the stage: missing runs, a version per strategy that can be served
    python -m tasks.register promote --yes         make the challenger the champion, if split `gate` allows it
    python -m tasks.register promote --propose     compare, say what the rule would do, change nothing
    python -m tasks.register retire VLM --why TEXT take VLMs out of what the champion chooses from, without training
    python -m tasks.register rollback --why TEXT   back to the champion before
    python -m tasks.register champion              what is served, since when, by whom and why
    python -m tasks.register history               who was made champion, when, by whom and why
    python -m tasks.register verify                every file of every version against its sha256
    python -m tasks.register load champion --question TEXT --image FILE    what a version would choose

The stage writes `register/registered.json`: which digest each strategy has. It changes nothing where all is registered,
and rebuilds a store that was wiped. With --json, `promote`, `retire` and `champion` print one JSON document. MLflow is
the one at MLFLOW_TRACKING_URI, else a file of this tree. Guide: docs/registry.md. Run by `dvc repro register` too.
"""

import argparse
import dataclasses
import datetime as dt
import getpass
import json
import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms_model.answering import ServedRouter
from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.history import MAX_WHY, Action, checked_why
from arms_model.logged_model import INSIDE
from arms_model.promotion import Verdict
from arms_model.registry import CHALLENGER, CHAMPION, DIGEST, Origin, Registry, Version
from arms_model.served import load_served, save_retired, save_served
from tasks.common.decisions import Conclusion, Decision, Said
from tasks.common.files import read_json, write_json
from tasks.common.gate_split import judge, load_gate_split, verdict_lines
from tasks.common.params import load_group_by, load_section, load_seed
from tasks.common.stage import run_command, run_stage
from tasks.common.tracking import (
    RecordedRuns,
    complete_records,
    one_at_a_time,
    open_client,
    speaking_with,
    store_behind,
    tracking_uri,
)
from tasks.common.version_notes import (
    RETIRED,
    RETIRED_FROM,
    VersionNotes,
    notes_after_retiring,
    requirements_of,
    version_notes,
)

STAGE = "register"
OUTPUT = Path("register/registered.json")
MODELS, EVALUATION = Path("models"), Path("cascade_eval")
LOCK = Path(".arms/registry/lock")
BASE = "base"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RegisterSettings:
    """Section `register`.

    Attributes:
        model: its name in MLflow's registry.
        margin: promote where the challenger is not worse than this.
        level: of the interval.
        draws: of the paired cluster bootstrap.
    """

    model: str = "arms-router"
    margin: float = 0.01
    level: float = 0.95
    draws: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must lie in [0, 1), got {self.margin}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")


def open_registry(settings: RegisterSettings) -> Registry:
    """The registry at MLflow's tracking URI; a local store that is not there yet is made."""
    uri = tracking_uri()
    with one_at_a_time(), speaking_with(uri):
        open_client(uri)
    return Registry(uri, model=settings.model, lock=LOCK, store=store_behind(uri))


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section(STAGE, RegisterSettings)
    selection = read_json(EVALUATION / "selection.json")
    runs = complete_records(tracking_uri())
    registry = open_registry(settings)
    versions = {entry["strategy"]: register(registry, entry, runs) for entry in selection["strategies"]}
    set_aliases(registry, versions, challenger=selection["challenger"])
    digests = {strategy: version.digest for strategy, version in versions.items()}
    write_json(OUTPUT, {"model": settings.model, "challenger": selection["challenger"], "digests": digests})


def register(registry: Registry, entry: dict[str, Any], runs: RecordedRuns) -> Version:
    """Register one strategy, unless it is; files that the store lost are put back.

    Args:
        registry: where.
        entry: of `cascade_eval/selection.json`.
        runs: what stands in MLflow of the stages.
    """
    with tempfile.TemporaryDirectory(prefix="arms-register-") as temporary:
        folder = Path(temporary) / "served"
        folder.mkdir()
        first, *second = (MODELS / stage for stage in entry["routers"])
        save_served(folder, strategy=entry["strategy"], base=first, new=second[0] if second else None, tau=entry["tau"])
        stage = EVALUATION.name if second else entry["routers"][0]
        run_id, uri = runs.runs[stage], tracking_uri()
        with speaking_with(uri):
            run_tags = open_client(uri).get_run(run_id).data.tags
        notes = version_notes(entry, load_served(folder), model=registry.model, run_tags=run_tags)
        origin = Origin(
            experiment_id=runs.experiment_id,
            run_id=run_id,
            tags=notes.tags,
            description=notes.card,
            requirements=notes.requirements,
        )
        version, is_new = registry.register(folder, origin)
        stands = "is now" if is_new else "is already"
        logger.info("%s %s version %d of %s", entry["strategy"], stands, version.number, registry.model)
        return version


def set_aliases(registry: Registry, versions: dict[str, Version], *, challenger: str) -> None:
    """The challenger is what the held-out queries pick; a store without a champion and a history gets one.

    What the champion was before VLMs were retired from it is no challenger: that would only bring them back.

    Raises:
        StorageError: there is a history, but no champion.
    """
    champion = registry.alias(CHAMPION)
    if champion is None:
        if (found := registry.history()).texts:
            raise StorageError(registry.says_otherwise(found, None))
        champion = first_champion(registry, base=versions[BASE])
    picked = versions[challenger]
    current = registry.alias(CHALLENGER)
    wanted = None if picked.digest in (champion.digest, champion.tags.get(RETIRED_FROM)) else picked
    if (current and current.number) != (wanted and wanted.number):
        registry.set_challenger(wanted)
    if wanted is not None:
        logger.info(
            "challenger: version %d (%s); `python -m tasks.register promote` compares", wanted.number, challenger
        )


def first_champion(registry: Registry, *, base: Version) -> Version:
    """Make a champion: in a new store the base router, in one that was rebuilt what was champion, if it is there."""
    former = registry.mirror.entries()
    action: Action = "restore" if former else "first"
    version, why = base, "first registration in this store"
    if former:
        last = former[-1]
        known = next((version for version in registry.versions() if version.digest == last.to_digest), None)
        version, why = known or base, "store was rebuilt"
        if known is None:
            why += (
                f"; the former champion (digest {last.to_digest[:12]}, since {last.when}, by {last.who}) is not among "
                "what the stages left"
            )
            logger.warning("%s; version %d (%s) is the champion", why, base.number, BASE)
    registry.promote(version, who=who(), when=now(), why=why, champion=None, action=action)
    logger.info("%s had no champion: version %d (%s) is", registry.model, version.number, version.strategy)
    return version


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


def history() -> None:
    """Print all changes of champion.

    Raises:
        StorageError: an entry was changed, or is missing, in the store or beside what this tree's mirror holds.
    """
    registry = open_registry(load_section(STAGE, RegisterSettings))
    found, champion = registry.history(), registry.alias(CHAMPION)
    for entry in found.entries:
        before = "none" if entry.from_version is None else entry.from_version
        print(
            f"{entry.number}  {entry.when}  {entry.who}  {entry.action}{' (forced)' if entry.forced else ''}  "
            f"{before} -> {entry.to_version}  {entry.why}"
        )
    if not found.texts:
        print(f"{registry.model} has had no champion yet")
    problems = list(found.problems)
    if (champion and champion.number) != found.champion:
        problems.append(
            f"the champion is version {champion.number if champion else 'none'}, the last entry says "
            f"{found.champion or 'none'}: it was set by other means, or entries are missing at the end"
        )
    problems += [
        f"entry {entry.number} ({entry.when}, {entry.who}, to version {entry.to_version}) stands in "
        f"{registry.mirror.path} and not in MLflow: it was cut off there or changed, or the store was wiped"
        for entry in registry.mirror.lost(found)
    ]
    if problems:
        raise StorageError("the history is not whole: " + "; ".join(problems) + ".")


def verify(which: str) -> None:
    """Check the files of one version, or of all.

    Raises:
        StorageError: what is refused, by name; of all, a version without a digest, too.
    """
    registry = open_registry(load_section(STAGE, RegisterSettings))
    versions = registry.versions() if which == "all" else [registry.find(which)]
    nameless = registry.nameless() if which == "all" else []
    refused = [
        f"version {number} of {registry.model} is refused: it has no tag {DIGEST}, so nobody can say what it should "
        "hold; it was not registered here, or the tag was removed. Delete it in MLflow."
        for number in nameless
    ]
    for number in nameless:
        print(f"version {number} (no digest): REFUSED")
    if not versions and not nameless:
        print(f"{registry.model} has no versions yet; `python -m tasks.register` registers them")
    for version in versions:
        name = f"version {version.number} ({', '.join([version.strategy, *version.aliases])})"
        try:
            served = registry.verify(version)
            print(f"{name}: all files are what was registered, digest {served.digest[:12]}")
        except StorageError as error:
            print(f"{name}: REFUSED")
            refused.append(str(error))
    if refused:
        raise StorageError("\n".join(refused))


def load(*, which: str, question: str | None, image: Path | None, candidates: list[str] | None) -> None:
    """Load a version as a gateway would, and show what it chooses.

    Raises:
        ConfigError: a question without a picture, or the other way round.
    """
    if (question is None) != (image is None):
        raise ConfigError("--question and --image belong together; give both, or none to only load.")
    registry = open_registry(load_section(STAGE, RegisterSettings))
    version = registry.find(which)
    served = registry.verify(version)
    print(f"version {version.number}: {described(served)}, digest {served.digest[:12]}")
    if question is None or image is None:
        print(f"VLMs: {', '.join(served.vlms)}")
        return
    (answer,) = served.answer([question], [image], candidates=[candidates])
    for vlm, confidence in sorted(answer.confidences.items(), key=lambda item: -item[1]):
        print(f"{confidence:.4f}  {vlm}")
    print(f"chosen: {answer.vlm}: {answer.reason}")


def described(served: ServedRouter) -> str:
    """A served router in a few words."""
    tau = "" if served.tau is None else f", tau {served.tau:g}"
    return f"{served.strategy}{tau}, {len(served.vlms)} VLMs"


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


def who() -> str:
    """The person at work: git's user, else the login name."""
    try:
        found = subprocess.run(
            ["git", "config", "user.name"],  # noqa: S607
            capture_output=True, text=True, check=False, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    try:
        return (found or getpass.getuser())[:200]
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def now() -> str:
    """The time, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def main() -> int:
    """Run the stage or one of the registry's commands; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.register", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="without one: the stage")
    promoting = commands.add_parser("promote", help="make the challenger the champion, if split `gate` allows it")
    promoting.add_argument("--version", type=int, help="this one instead of the challenger")
    promoting.add_argument("--yes", action="store_true", help="ask nobody")
    promoting.add_argument("--force", action="store_true", help="whatever the comparison says; needs --why")
    promoting.add_argument("--why", metavar="TEXT", help="kept in the history")
    promoting.add_argument("--propose", action="store_true", help="say what the rule would do; change nothing")
    promoting.add_argument("--json", action="store_true", help="print one JSON document; 0 whatever the decision")
    retiring = commands.add_parser("retire", help="take VLMs out of what the champion chooses from, without training")
    retiring.add_argument("names", nargs="+", metavar="VLM")
    retiring.add_argument("--why", metavar="TEXT", required=True, help="kept in the history")
    retiring.add_argument("--json", action="store_true", help="print one JSON document")
    showing = commands.add_parser("champion", help="what is served, since when, by whom and why")
    showing.add_argument("--json", action="store_true", help="print one JSON document; null without a champion")
    rolling = commands.add_parser("rollback", help="back to the champion before")
    rolling.add_argument("--why", metavar="TEXT", default="no reason given", help="kept in the history")
    commands.add_parser("history", help="who was made champion, when, by whom and why")
    verifying = commands.add_parser("verify", help="check every file against its sha256")
    verifying.add_argument("which", nargs="?", default="all", metavar="VERSION|ALIAS", help="default: all")
    loading = commands.add_parser("load", help="load a version as a gateway would, and show what it chooses")
    loading.add_argument("which", metavar="VERSION|ALIAS")
    loading.add_argument("--question", metavar="TEXT")
    loading.add_argument("--image", type=Path, metavar="FILE")
    loading.add_argument("--candidates", nargs="+", metavar="VLM", help="default: all")
    given = parser.parse_args()
    if given.command == "promote" and given.propose and (given.force or given.yes):
        parser.error("--propose changes nothing: leave out --force and --yes")
    for noisy in ("mlflow.store.db.utils", "mlflow.utils.environment", "mlflow.utils.requirements_utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # tracebacks of what we say ourselves; pip's version
    if given.command is None:
        return run_stage(STAGE, body)
    work = {
        "promote": lambda: promote(
            number=given.version,
            why=given.why,
            force=given.force,
            yes=given.yes,
            propose=given.propose,
            as_json=given.json,
        ),
        "retire": lambda: retire(given.names, why=given.why, as_json=given.json),
        "champion": lambda: champion(as_json=given.json),
        "rollback": lambda: rollback(why=given.why),
        "history": history,
        "verify": lambda: verify(given.which),
        "load": lambda: load(
            which=given.which, question=given.question, image=given.image, candidates=given.candidates
        ),
    }
    return run_command(STAGE, work[given.command])


if __name__ == "__main__":
    sys.exit(main())
