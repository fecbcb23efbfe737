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
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from arms_model.errors import ConfigError, StorageError
from arms_model.history import Action
from arms_model.registry import CHALLENGER, CHAMPION, DIGEST, Origin, Registry, Version
from arms_model.served import load_served, save_served
from tasks.common.championship import champion, promote, retire, rollback
from tasks.common.files import read_json, write_json
from tasks.common.params import load_section
from tasks.common.registering import STAGE, RegisterSettings, described, now, open_registry, who
from tasks.common.stage import run_command, run_stage
from tasks.common.tracking import RecordedRuns, complete_records, open_client, speaking_with, tracking_uri
from tasks.common.version_notes import RETIRED_FROM, version_notes

OUTPUT = Path("register/registered.json")
MODELS, EVALUATION = Path("models"), Path("cascade_eval")
BASE = "base"
logger = logging.getLogger(__name__)


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
