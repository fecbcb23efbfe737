"""Who was made champion, when, by whom and why: entries that are appended and never changed.

Each entry holds the sha256 of the one before it, so an edited entry, or one that is missing from the middle, is seen.
Entries missing at the end leave the chain whole; that the champion then is not the one that the last entry names shows
it. Where entries are kept is the registry's business: here they are texts under numbered keys.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from arms_model.errors import ConfigError
from arms_model.settings import parse

PREFIX = "arms.history."
MAX_WHY = 1000  # characters: an entry must fit into a tag of the store, 5,000 characters
Action = Literal["first", "promote", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One change of champion.

    Attributes:
        number: from 1.
        when: UTC, ISO 8601.
        who: who asked for it.
        action: `first` champion of the store, `promote` or `rollback`.
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

    def before(self, version: int) -> Entry | None:
        """The last promotion that made `version` the champion: what a rollback undoes."""
        return next((e for e in reversed(self.entries) if e.to_version == version and e.action != "rollback"), None)

    def digest_of(self, version: int) -> str | None:
        """What `version` served when it was made champion; None where it never was."""
        return next((entry.to_digest for entry in reversed(self.entries) if entry.to_version == version), None)


def read_history(tags: Mapping[str, str]) -> History:
    """Read and check the chain.

    Args:
        tags: all tags of the store's model; others than entries are passed over.
    """
    texts = {key: tags[key] for key in sorted(tags) if key.startswith(PREFIX)}
    entries, problems, previous, expected = [], [], "", 1
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
        entries.append(entry)
        previous, expected = _sha256(text), entry.number + 1
    return History(entries=tuple(entries), problems=tuple(problems), texts=texts)


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
