"""The chain of entries: what is read back, and every way of changing it that is seen."""

import dataclasses
import json
from pathlib import Path

import pytest

from arms_model.errors import ConfigError
from arms_model.history import Action, Entry, Mirror, checked_why, read_history


def chain(*moves: tuple[Action, int | None, int]) -> dict[str, str]:
    """Tags with an entry per move: action, from, to."""
    tags: dict[str, str] = {"other": "tag"}
    for action, from_version, to_version in moves:
        history = read_history(tags)
        entry = Entry(
            number=history.next_number,
            when=f"2026-01-0{history.next_number}T00:00:00+00:00",
            who="Ada",
            action=action,
            from_version=from_version,
            to_version=to_version,
            from_digest="" if from_version is None else f"d{from_version}",
            to_digest=f"d{to_version}",
            why="because",
            forced=False,
            previous=history.last_sha256,
        )
        tags[entry.key] = entry.text
    return tags


THREE = chain(("first", None, 1), ("promote", 1, 2), ("promote", 2, 3))


def edited(key: str, **changes: object) -> dict[str, str]:
    return THREE | {key: json.dumps(json.loads(THREE[key]) | changes, sort_keys=True, ensure_ascii=False)}


def without(key: str) -> dict[str, str]:
    return {name: text for name, text in THREE.items() if name != key}


def test_whole_chain_is_read_back() -> None:
    history = read_history(THREE)
    assert history.problems == ()
    assert [(entry.from_version, entry.to_version) for entry in history.entries] == [(None, 1), (1, 2), (2, 3)]
    assert history.next_number == 4
    assert (history.digest_of(2), history.digest_of(9)) == ("d2", None)


def test_no_entries_are_a_whole_chain() -> None:
    history = read_history({"other": "tag"})
    assert (history.entries, history.problems, history.next_number, history.last_sha256) == ((), (), 1, "")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (edited("arms.history.000001", who="Eve"), "arms.history.000002 does not follow the entry before it"),
        (edited("arms.history.000002", why="other"), "arms.history.000003 does not follow the entry before it"),
        (edited("arms.history.000002", previous="0" * 64), "arms.history.000002 does not follow"),
        (edited("arms.history.000002", number=7), "arms.history.000002 holds entry 7"),
        (edited("arms.history.000002", extra=1), "arms.history.000002 cannot be read"),
        (THREE | {"arms.history.000002": "{"}, "arms.history.000002 cannot be read"),
        (without("arms.history.000001"), "entry 1 is missing before arms.history.000002"),
        (without("arms.history.000002"), "entry 2 is missing before arms.history.000003"),
        (THREE | {"arms.history.000005": THREE["arms.history.000003"]}, "arms.history.000005 holds entry 3"),
    ],
)
def test_changed_entry_is_seen(tags: dict[str, str], words: str) -> None:
    assert any(problem.startswith(words) for problem in read_history(tags).problems)


def test_next_number_is_above_every_kept_one_readable_or_not() -> None:
    assert read_history(THREE | {"arms.history.000009": "broken"}).next_number == 10


@pytest.mark.parametrize(
    ("moves", "before"),
    [
        ([], None),
        ([("first", None, 1)], None),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 3)], 2),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2)], 1),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 1)], 2),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 1), ("rollback", 1, 2)], 1),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 1), ("rollback", 1, 2), ("rollback", 2, 1)], None),
        ([("restore", None, 3), ("promote", 3, 1), ("rollback", 1, 3), ("promote", 3, 2)], 3),
        ([("first", None, 1), ("promote", 1, 2), ("promote", 2, 2)], 1),  # set again where the alias was lost
    ],
)
def test_rollback_goes_further_back_each_time(moves: list[tuple[Action, int | None, int]], before: int | None) -> None:
    history = read_history(chain(*moves))
    assert history.problems == ()
    assert history.before() == before


def test_entry_that_does_not_begin_where_the_one_before_ended_is_seen() -> None:
    history = read_history(chain(("first", None, 1), ("promote", 1, 2), ("promote", 1, 3)))
    assert history.problems == (
        "arms.history.000003 begins with version 1, but the entry before it made version 2 the champion",
    )


def test_mirror_keeps_each_entry_once_and_knows_what_the_store_lost(tmp_path: Path) -> None:
    mirror = Mirror(path=tmp_path / "history.jsonl", store="here", model="one")
    assert (mirror.entries(), mirror.lost(read_history({}))) == ([], [])
    mirror.add(read_history(THREE))
    with mirror.path.open("a") as handle:
        handle.write('{"store": "he')  # a line that a full disk cut short
    longer = read_history(chain(("first", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2)))
    mirror.add(longer)
    mirror.add(longer)
    assert mirror.entries() == list(longer.entries)
    assert [entry.number for entry in mirror.lost(read_history(without("arms.history.000003")))] == [3, 4]
    assert (
        dataclasses.replace(mirror, store="there").entries() == dataclasses.replace(mirror, model="two").entries() == []
    )


def test_entries_of_a_store_before_a_rebuilding_are_not_lost(tmp_path: Path) -> None:
    mirror = Mirror(path=tmp_path / "history.jsonl", store="here", model="one")
    mirror.add(read_history(THREE))
    rebuilt = dataclasses.replace(read_history(THREE).entries[0], action="restore", when="2026-01-05T00:00:00+00:00")
    assert mirror.lost(read_history({rebuilt.key: rebuilt.text})) == []


def test_entry_fits_into_a_tag_of_the_store() -> None:
    entry = read_history(THREE).entries[-1]
    longest = dataclasses.replace(entry, why="w" * 1000, who="n" * 200, to_digest="f" * 64, from_digest="f" * 64)
    assert len(longest.text) < 5000


@pytest.mark.parametrize(("why", "words"), [("  ", "why is empty"), ("w" * 1001, "at most 1,000 are kept")])
def test_reason_that_cannot_be_kept_is_refused(why: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checked_why(why)
