"""The registry of what can be served, kept in MLflow: register, verify, load, make champion, roll back.

With `artifacts`, `logged_model` and `pyfunc_model` the part of the library that talks to MLflow (extra `registry`); it
is imported when a registry is opened, and nothing else in the library imports this module. A version is a served folder
(`arms_model.served`) in MLflow's form `pyfunc`, models from code: no pickle. Tags name it (`arms.digest`) and hold the
size and sha256 of each of its files.

Our own loading downloads exactly the files that a version consists of, holds each against its sha256, and reads JSON
and safetensors. Code that lies beside them is for MLflow's `pyfunc.load_model` and is never run here.

A digest is registered once: changes happen under a lock file, and two machines that do not share one are told apart by
a second look afterwards. What the hashes do not protect from is somebody who may write tags in the store.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms_model.answering import ServedRouter
from arms_model.artifacts import find_artifacts_beside_sqlite
from arms_model.errors import ArmsError, ConfigError, DataError, StorageError
from arms_model.history import Action, Entry, History, Mirror, checked_why, read_history
from arms_model.locks import locked
from arms_model.logged_model import (
    FILES,
    INSIDE,
    MAX_DESCRIPTION,
    download,
    expected_files,
    remove_all,
    save_pyfunc,
)
from arms_model.served import check_files, load_served
from arms_model.uris import hidden, shown_uri

CHAMPION, CHALLENGER = "champion", "challenger"
DIGEST, STRATEGY = "arms.digest", "arms.strategy"
MAX_TAG = 100_000  # characters of a version's tag
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version.

    Attributes:
        number: MLflow's.
        digest: what it serves.
        strategy: what that is called.
        aliases: `champion`, `challenger`, or none.
        tags: all.
    """

    number: int
    digest: str
    strategy: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a version comes from.

    Attributes:
        experiment_id: of MLflow.
        run_id: of the run that made it.
        tags: further tags of the version.
        description: its model card, Markdown, at most `MAX_DESCRIPTION` characters.
        requirements: pip requirements under which MLflow can load it.
    """

    experiment_id: str
    run_id: str
    tags: Mapping[str, str]
    description: str
    requirements: tuple[str, ...]


class StoreError(StorageError):
    """MLflow is away, or did not do what was asked."""


class Registry:
    """One registered model of one MLflow store.

    Args:
        uri: of MLflow: http(s), sqlite or postgresql+psycopg2.
        model: its name there.
        lock: a file; who changes the registry holds it. The history's mirror, `history.jsonl`, lies beside it.
        store: what the mirror calls the store, where that is reached in several ways; None for `uri`.

    Raises:
        ConfigError: MLflow is not installed, or a name that MLflow does not take.
    """

    def __init__(self, uri: str, *, model: str, lock: Path, store: str | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,199}", model):
            raise ConfigError(f"register.model: '{model}' is no name for a model; use letters, digits, . _ and -.")
        os.environ |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_UV_AUTO_DETECT": "false",  # else uv.lock of the current folder goes into every version
        }
        for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")):
            os.environ.setdefault(name, value)  # MLflow's own choice notices a server that is away after minutes
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ConfigError("MLflow is not installed; `uv sync --extra registry` brings it.") from None
        find_artifacts_beside_sqlite()
        self.model = model
        self._uri = uri
        self._lock = lock
        name = shown_uri(store or uri).replace(f"{Path.cwd()}/", "")  # the same when the folder was moved
        self.mirror = Mirror(path=lock.with_name("history.jsonl"), store=name, model=model)
        with self._reached():
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def versions(self) -> list[Version]:
        """All versions that this project registered, the oldest first."""
        with self._reached():
            aliases = self._aliases()
            found = self._all_versions()
        versions = [
            Version(
                number=int(version.version),
                digest=version.tags[DIGEST],
                strategy=version.tags.get(STRATEGY, ""),
                aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(version.version))),
                tags=dict(version.tags),
            )
            for version in found
            if DIGEST in version.tags
        ]
        return sorted(versions, key=lambda version: version.number)

    def nameless(self) -> list[int]:
        """Numbers of the versions without a digest: nobody can say what they should hold."""
        with self._reached():
            return sorted(int(version.version) for version in self._all_versions() if DIGEST not in version.tags)

    def alias(self, name: str) -> Version | None:
        """The version that an alias points to; None where it points nowhere."""
        return next((version for version in self.versions() if name in version.aliases), None)

    def find(self, which: str) -> Version:
        """A version by its number or alias.

        Raises:
            DataError: there is none.
        """
        versions = self.versions()
        for version in versions:
            if which == str(version.number) or which in version.aliases:
                return version
        known = ", ".join([str(version.number) for version in versions] + [CHAMPION, CHALLENGER])
        raise DataError(f"{self.model} has no version '{which}' with a tag {DIGEST}; known are: {known}.")

    def register(self, folder: Path, origin: Origin) -> tuple[Version, bool]:
        """Register a served folder, unless a version with its digest is there and its files are whole.

        Files that are missing or were changed are put back into the version.

        Args:
            folder: as `save_served` wrote it.
            origin: what is told about it.

        Returns:
            The version, and whether it is new.

        Raises:
            ConfigError: a model card that is too long.
            StorageError: the folder is damaged, MLflow does not take it, or a version's files cannot be put back.
        """
        if len(origin.description) > MAX_DESCRIPTION:
            raise ConfigError(
                f"the model card has {len(origin.description):,} characters, MLflow keeps {MAX_DESCRIPTION:,}."
            )
        served = load_served(folder)
        with self._changing():
            known = self._with_digest(served.digest)
            if known:
                return self._whole(known, folder, origin), False
            mine = self._log(folder, served, origin)
            first = self._with_digest(served.digest)[0]
            if first.number != mine:  # another machine was quicker, under a lock of its own
                with self._reached():
                    self._client.delete_model_version(self.model, str(mine))
            return first, first.number == mine

    def set_challenger(self, version: Version | None) -> None:
        """Let the alias `challenger` point to `version`; None takes it away."""
        with self._changing(), self._reached():
            if version is not None:
                self._client.set_registered_model_alias(self.model, CHALLENGER, str(version.number))
            elif CHALLENGER in self._aliases():
                self._client.delete_registered_model_alias(self.model, CHALLENGER)

    def verify(self, version: Version) -> ServedRouter:
        """Download a version, hold every file against its tags and read it, running no code of it.

        Raises:
            StoreError: MLflow is away.
            StorageError: what does not fit, by its name.
        """
        with tempfile.TemporaryDirectory(prefix="arms-registry-") as temporary:
            return self.fetch(version, Path(temporary))

    def fetch(self, version: Version, folder: Path) -> ServedRouter:
        """Download a version into `folder`, which is empty, as `verify` does; its served folder is `folder / INSIDE`.

        Raises:
            StoreError: MLflow is away.
            StorageError: what does not fit, by its name.
        """
        self._check_recorded(version)
        try:
            expected = expected_files(version.tags.get(FILES))
            with self._reached():
                uri = self._client.get_model_version_download_uri(self.model, str(version.number))
                download(uri, expected, folder, tracking_uri=self._uri)
            check_files(folder, expected)
            return load_served(folder / INSIDE, digest=version.digest)
        except StoreError:
            raise
        except (DataError, StorageError) as error:
            text = str(error).replace(f"{folder}/", "")
            raise StorageError(f"version {version.number} of {self.model} is refused: {text}") from None

    def origin(self, version: Version, *, requirements: tuple[str, ...]) -> Origin:
        """Where a registered version comes from, for one that is made of it.

        Args:
            version: the registered one.
            requirements: of the one to be.
        """
        with self._reached():
            found = self._client.get_model_version(self.model, str(version.number))
            run = self._client.get_run(str(found.run_id))
        return Origin(
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags={name: value for name, value in version.tags.items() if name not in (DIGEST, FILES, STRATEGY)},
            description=found.description or "",
            requirements=requirements,
        )

    def load(self, which: str) -> ServedRouter:
        """A version, by number or alias, ready to answer; errors as for `find` and `verify`."""
        return self.verify(self.find(which))

    def history(self) -> History:
        """All changes of champion, and whether the chain is whole."""
        with self._reached():
            return read_history(self._model_tags())

    def promote(
        self,
        version: Version,
        *,
        who: str,
        when: str,
        why: str,
        champion: Version | None,
        action: Action = "promote",
        forced: bool = False,
    ) -> Entry:
        """Make `version` the champion and write it into the history.

        The entry is written first: a stop in between leaves an entry whose champion was not set, which shows.

        Args:
            version: the champion to be.
            who: who asks.
            when: UTC, ISO 8601.
            why: in words.
            champion: the one it was compared with.
            action: what to call it.
            forced: whether the comparison was overruled.

        Raises:
            ConfigError: no reason.
            DataError: it is the champion, or the champion is another than it was compared with.
            StorageError: the history is broken, its last entry names another champion and this is not forced, or
                another machine wrote to it at the same moment.
        """
        why = checked_why(why)
        with self._changing():
            now = self.alias(CHAMPION)
            if (now and now.number) != (champion and champion.number):
                raise DataError(
                    f"the champion became version {now.number if now else 'none'} meanwhile, not "
                    f"{champion.number if champion else 'none'}; run the same command again."
                )
            history = self.history()
            is_expected = (now and now.number) == history.champion
            if now is not None and now.number == version.number and is_expected:
                raise DataError(f"version {version.number} is the champion already; nothing to do.")
            if history.problems:
                raise StorageError(
                    f"the history is broken ({history.problems[0]}); nothing is added to it. Look at `history`, and "
                    f"restore the tags of {self.model} from a backup of the store."
                )
            if not is_expected and not forced:
                raise StorageError(self.says_otherwise(history, now))
            last = history.entries[-1] if history.entries else None
            entry = Entry(
                number=history.next_number,
                when=when,
                who=who,
                action=action,
                from_version=last.to_version if last else None,
                to_version=version.number,
                from_digest=last.to_digest if last else "",
                to_digest=version.digest,
                why=why,
                forced=forced,
                previous=history.last_sha256,
            )
            self._write(entry)
            with self._reached():
                self._client.set_registered_model_alias(self.model, CHAMPION, str(version.number))
                if CHALLENGER in version.aliases:
                    self._client.delete_registered_model_alias(self.model, CHALLENGER)
            self._mirrored()
        return entry

    def says_otherwise(self, history: History, champion: Version | None) -> str:
        """What to say, and to do, where alias `champion` is not where the last entry of the history put it."""
        last = history.entries[-1] if history.entries else None
        said = (
            f"made version {last.to_version} the champion ({last.when}, {last.who}: {last.why})" if last else "is none"
        )
        return (
            f"alias `{CHAMPION}` of {self.model} points to version {champion.number if champion else 'none'}, but the "
            f"last entry of its history {said}: the alias was changed by other means, or entries are missing. Look at "
            f"`python -m tasks.register history`, then choose the champion yourself: `python -m tasks.register promote "
            f"--version {last.to_version if last else 'N'} --force --why TEXT`."
        )

    def rollback(self, *, who: str, when: str, why: str) -> Entry:
        """Make the version the champion that was it before; errors as for `promote`.

        Raises:
            DataError: there is no champion, or none before it.
        """
        champion, number = self.alias(CHAMPION), self.history().before()
        if champion is None or number is None:
            raise DataError("there is no champion before this one to go back to; `history` lists all changes.")
        before = self.find(str(number))
        self.verify(before)
        return self.promote(before, who=who, when=when, why=why, champion=champion, action="rollback")

    def _check_recorded(self, version: Version) -> None:
        recorded = self.history().digest_of(version.number)
        if recorded is not None and recorded != version.digest:
            raise StorageError(
                f"version {version.number} has tag {DIGEST} {version.digest[:12]}..., but the history says that it "
                f"served {recorded[:12]}... when it became champion: the tag was changed."
            )

    def _whole(self, known: list[Version], folder: Path, origin: Origin) -> Version:
        """The first of the versions with a digest whose files are whole; where none is, the first is mended."""
        reasons = []
        for version in known:
            self._check_recorded(version)
            try:
                self.verify(version)
                return version
            except StoreError:
                raise
            except StorageError as error:
                reasons.append(str(error))
        self._mend(known[0], folder, origin)
        logger.warning(
            "version %d of %s is mended, its files are put back: %s", known[0].number, self.model, reasons[0]
        )
        return self.find(str(known[0].number))

    def _mend(self, version: Version, folder: Path, origin: Origin) -> None:
        """Put the files of a version back; a stop in between leaves one that is refused, and mended by the next try."""
        with tempfile.TemporaryDirectory(prefix="arms-registry-") as temporary, self._reached():
            found = self._client.get_model_version(self.model, str(version.number))
            logged = self._client.get_logged_model(str(found.source).split("/")[-2])  # the version itself names none
            if (logged.artifact_location, logged.tags.get(DIGEST)) != (found.source, version.digest):
                raise StorageError(
                    f"version {version.number} of {self.model} is damaged, and its logged model is not the one of "
                    f"digest {version.digest[:12]}..., so nothing is put into it: a tag was changed. Delete the "
                    "version in MLflow and run the same command again; it becomes a new one."
                )
            package = Path(temporary) / "model"
            files = save_pyfunc(
                package,
                folder,
                model_id=logged.model_id,
                run_id=found.run_id or origin.run_id,
                requirements=origin.requirements,
            )
            remove_all(self._client.get_model_version_download_uri(self.model, found.version), tracking_uri=self._uri)
            self._client.log_model_artifacts(logged.model_id, str(package))
            self._client.set_model_version_tag(self.model, found.version, FILES, json.dumps(files, sort_keys=True))
        self.verify(self.find(str(version.number)))

    def _mirrored(self) -> None:
        """Bring the mirror up to date; the store is what counts, so a disk that refuses is only said."""
        try:
            self.mirror.add(self.history())
        except OSError as error:
            logger.warning("%s could not be written (%s); the history stands in MLflow only", self.mirror.path, error)

    def _log(self, folder: Path, served: ServedRouter, origin: Origin) -> int:
        """Put the folder into MLflow's form, upload it, and make it a version; its number."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="arms-registry-") as temporary, self._reached():
            with contextlib.suppress(MlflowException):  # it is there already
                if not self._has_model():
                    self._client.create_registered_model(
                        self.model, description="What ARMS can serve. `champion` is served; see a version for its card."
                    )
            tags = {DIGEST: served.digest, STRATEGY: served.strategy, **origin.tags}
            logged = self._client.create_logged_model(
                origin.experiment_id,
                name=re.sub(r"[^\w-]+", "-", f"{self.model}-{served.strategy}"),
                source_run_id=origin.run_id,
                tags={DIGEST: served.digest, STRATEGY: served.strategy},
                model_type="router",
            )
            package = Path(temporary) / "model"
            files = save_pyfunc(
                package, folder, model_id=logged.model_id, run_id=origin.run_id, requirements=origin.requirements
            )
            tags[FILES] = json.dumps(files, sort_keys=True)
            for name, value in tags.items():
                if len(value) > MAX_TAG:
                    raise ConfigError(f"tag {name} has {len(value):,} characters, MLflow keeps {MAX_TAG:,}.")
            self._client.log_model_artifacts(logged.model_id, str(package))
            self._client.finalize_logged_model(logged.model_id, "READY")
            self._client.log_outputs(origin.run_id, [LoggedModelOutput(logged.model_id, 0)])
            created = self._client.create_model_version(
                self.model,
                logged.artifact_location,
                run_id=origin.run_id,
                tags=tags,
                description=origin.description,
                model_id=logged.model_id,
            )
        return int(created.version)

    def _write(self, entry: Entry) -> None:
        """Append an entry, and look whether it stands."""
        with self._reached():
            self._client.set_registered_model_tag(self.model, entry.key, entry.text)
            found = self._model_tags().get(entry.key)
        if found != entry.text:
            raise StorageError(f"{entry.key} was written by another machine at the same moment; run the command again.")

    def _with_digest(self, digest: str) -> list[Version]:
        return [version for version in self.versions() if version.digest == digest]

    def _all_versions(self) -> list[Any]:
        return list(self._client.search_model_versions(f"name='{self.model}'", max_results=10_000))

    def _has_model(self) -> bool:
        return bool(self._client.search_registered_models(f"name='{self.model}'"))

    def _model_tags(self) -> dict[str, str]:
        found = self._client.search_registered_models(f"name='{self.model}'")
        return dict(found[0].tags) if found else {}

    def _aliases(self) -> dict[str, int]:
        if not self._has_model():
            return {}
        return {a: int(v) for a, v in self._client.get_registered_model(self.model).aliases.items()}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock file; it is let go when the process ends, however it does."""
        with locked(self._lock, waits_for=f"another command changes the registry ({self._lock})"):
            yield

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Say in words that MLflow is away, or did not do what was asked."""
        try:
            yield
        except (ArmsError, KeyboardInterrupt):
            raise
        except Exception as error:
            if not type(error).__module__.startswith(("mlflow", "requests", "urllib3", "sqlalchemy")):
                raise
            text = hidden(str(error), self._uri).strip() or type(error).__name__
            raise StoreError(
                f"MLflow at {shown_uri(self._uri)} does not do what is asked ({text.splitlines()[0][:300]}); start it, "
                "or set MLFLOW_TRACKING_URI to one that runs, and run the same command again: nothing is registered "
                "twice."
            ) from None
