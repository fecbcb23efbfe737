"""Who was made champion, when, by whom and why: entries that are appended and never changed.

Each entry holds the sha256 of the one before it, so an edited entry, or one that is missing from the middle, is seen.
Entries missing at the end leave the chain whole; that the champion then is not the one that the last entry names shows
it, and so does the mirror: a file in which each entry is written down a second time, outside of the store. Where
entries are kept in the store is the registry's business: here they are texts under numbered keys.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arms_model.errors import ConfigError
from arms_model.settings import parse

PREFIX = "arms.history."
MAX_WHY = 1000  # characters: an entry must fit into a tag of the store, 5,000 characters
Action = Literal["first", "promote", "rollback", "restore", "retire"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One change of champion.

    Attributes:
        number: from 1.
        when: UTC, ISO 8601.
        who: who asked for it.
        action: `first` champion of the store, `promote`, `rollback`, `restore` after the store was rebuilt, or
            `retire`: the champion before, with VLMs out of the selection space.
        from_version: the champion before; None for the first.
        to_version: the champion since.
        from_digest: what was served before; "" for the first.
        to_digest: what is served since.
        why: in words.
        forced: whether the comparison was overruled.
        previous: sha256 of the text of the entry before; "" for the first.
    """

    number: int
    when: str
    who: str
    action: Action
    from_version: int | None
    to_version: int
    from_digest: str
    to_digest: str
    why: str
    forced: bool
    previous: str

    @property
    def key(self) -> str:
        """Where it is kept."""
        return f"{PREFIX}{self.number:06d}"

    @property
    def text(self) -> str:
        """As it is kept."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class History:
    """What the store holds.

    Attributes:
        entries: those that can be read, in order.
        problems: what is wrong with the chain, in sentences; empty where it is whole.
        texts: of every key, as kept.
    """

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    texts: Mapping[str, str]

    @property
    def next_number(self) -> int:
        """A number above all kept ones, readable or not."""
        numbers = [int(key.removeprefix(PREFIX)) for key in self.texts if key.removeprefix(PREFIX).isdecimal()]
        return max(numbers, default=0) + 1

    @property
    def last_sha256(self) -> str:
        """What the next entry names as `previous`."""
        last = f"{PREFIX}{self.next_number - 1:06d}"
        return _sha256(self.texts[last]) if last in self.texts else ""

    @property
    def champion(self) -> int | None:
        """The version that the last entry names; None without entries."""
        return self.entries[-1].to_version if self.entries else None

    def before(self) -> int | None:
        """Where a rollback goes: the champion before the last promotion that was not rolled back; None without one."""
        champions: list[int] = []
        for entry in self.entries:
            if entry.action == "rollback":
                while champions and champions[-1] != entry.from_version:
                    champions.pop()
                champions = champions[:-1]
            if champions[-1:] != [entry.to_version]:
                champions.append(entry.to_version)
        return champions[-2] if len(champions) > 1 else None

    def digest_of(self, version: int) -> str | None:
        """What `version` served when it was made champion; None where it never was."""
        return next((entry.to_digest for entry in reversed(self.entries) if entry.to_version == version), None)


def read_history(tags: Mapping[str, str]) -> History:
    """Read and check the chain.

    Args:
        tags: all tags of the store's model; others than entries are passed over.
    """
    texts = {key: tags[key] for key in sorted(tags) if key.startswith(PREFIX)}
    entries: list[Entry] = []
    problems, previous, expected = [], "", 1
    for key, text in texts.items():
        try:
            entry = parse(Entry, json.loads(text), key)
        except (ConfigError, ValueError, RecursionError) as error:
            problems.append(f"{key} cannot be read: {error}")
            previous, expected = _sha256(text), expected + 1
            continue
        if entry.key != key:
            problems.append(f"{key} holds entry {entry.number}: it was moved or copied")
        elif entry.number != expected:
            problems.append(f"entry {expected} is missing before {key}")
        elif entry.previous != previous:
            problems.append(f"{key} does not follow the entry before it: one of the two was changed")
        elif entries and entries[-1].number == entry.number - 1 and entry.from_version != entries[-1].to_version:
            problems.append(
                f"{key} begins with version {entry.from_version or 'none'}, but the entry before it made version "
                f"{entries[-1].to_version} the champion"
            )
        entries.append(entry)
        previous, expected = _sha256(text), entry.number + 1
    return History(entries=tuple(entries), problems=tuple(problems), texts=texts)


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A file with a line per entry, beside the checkout and not in the store: it outlives a store that is wiped.

    Attributes:
        path: of the file; made when the first entry comes.
        store: a name of the store; others' lines are passed over.
        model: likewise.
    """

    path: Path
    store: str
    model: str

    def entries(self) -> list[Entry]:
        """All entries of this store and model, of the stores before a rebuilding, too; torn lines are left out."""
        found = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                kept = json.loads(line)
                if (kept["store"], kept["model"]) == (self.store, self.model):
                    found.append(parse(Entry, kept["entry"], str(self.path)))
            except (ConfigError, KeyError, TypeError, ValueError, RecursionError):
                continue
        return found

    def add(self, history: History) -> None:
        """Append what the store's history has and the file lacks."""
        known = set(self.entries())
        lines = [
            json.dumps({"store": self.store, "model": self.model, "entry": dataclasses.asdict(entry)})
            for entry in history.entries
            if entry not in known
        ]
        if lines:
            with self.path.open("a") as handle:
                handle.write("\n" * self._is_torn() + "\n".join(lines) + "\n")
                handle.flush()
                os.fsync(handle.fileno())

    def lost(self, history: History) -> list[Entry]:
        """What the file has and the store lacks; what is older than the store's first was of a store before it."""
        since = history.entries[0].when if history.entries else ""
        return [entry for entry in self.entries() if entry.when >= since and entry not in history.entries]

    def _is_torn(self) -> bool:
        return self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0


def checked_why(why: str) -> str:
    """`why`, if it is a reason that can be kept.

    Raises:
        ConfigError: it is empty or too long.
    """
    if not why.strip():
        raise ConfigError("why is empty; say in a sentence why the champion changes: --why TEXT.")
    if len(why) > MAX_WHY:
        raise ConfigError(f"why has {len(why):,} characters, at most {MAX_WHY:,} are kept; say it shorter.")
    return why.strip()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
