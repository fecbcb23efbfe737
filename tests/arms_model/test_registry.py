"""The registry on a real SQLite store: one version per digest, aliases, the history, MLflow's own way of loading."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.registry import MAX_DESCRIPTION, Registry
from tests.arms_model.stores import MODEL, Store, sqlite_store
from tests.arms_model.toys import CHOICES, pictures, questions, save_toy_base, save_toy_cascade


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions: base, and cascades with tau 0.6 and 0.7. Copied, never written to."""
    store = sqlite_store(tmp_path_factory.mktemp("three"))
    store.register(save_toy_base)
    store.register(save_toy_cascade)
    store.register(save_toy_cascade, tau=0.7)
    return store.folder


@pytest.fixture
def store(three: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of the store with three versions; artifacts stay where they are."""
    shutil.copy(three / "mlflow.db", tmp_path / "mlflow.db")
    yield sqlite_store(tmp_path)


def versions(store: Store) -> list[tuple[int, str]]:
    return [(version.number, version.strategy) for version in store.registry.versions()]


def test_each_digest_is_one_version_with_its_tags(store: Store) -> None:
    assert versions(store) == [(1, "base"), (2, "base + independent"), (3, "base + independent")]
    version = store.registry.find("1")
    assert version.tags["arms.vlms"] == "a, c"
    assert json.loads(version.tags["arms.files"])["artifacts/served/served.json"][1] == version.digest
    assert store.client.get_model_version(MODEL, "1").description == "# A card"


def test_registering_again_makes_no_version(store: Store) -> None:
    again = store.register(save_toy_cascade)
    assert again.number == 2
    assert len(versions(store)) == 3


def test_registering_says_whether_the_version_is_new(store: Store, tmp_path: Path) -> None:
    save_toy_cascade(tmp_path / "old")
    save_toy_cascade(tmp_path / "new", tau=0.8)
    assert store.registry.register(tmp_path / "old", store.origin)[1] is False
    assert store.registry.register(tmp_path / "new", store.origin)[1] is True


def test_card_that_the_store_would_not_take_is_refused(store: Store, tmp_path: Path) -> None:
    save_toy_base(tmp_path / "served")
    origin = dataclasses.replace(store.origin, description="x" * (MAX_DESCRIPTION + 1))
    with pytest.raises(ConfigError, match="5,001 characters, MLflow keeps 5,000"):
        store.registry.register(tmp_path / "served", origin)


def test_damaged_folder_is_not_registered(store: Store, tmp_path: Path) -> None:
    save_toy_cascade(tmp_path / "served", tau=0.9)
    (tmp_path / "served/base/weights.safetensors").write_bytes(b"no")
    with pytest.raises(StorageError, match=r"weights\.safetensors has 2 bytes"):
        store.registry.register(tmp_path / "served", store.origin)
    assert len(versions(store)) == 3


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts")


def flip_a_byte(folder: Path) -> None:
    (path,) = (folder / "artifacts").rglob("base/weights.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add_a_module(folder: Path) -> None:
    (path,) = (folder / "artifacts").rglob("MLmodel")
    path.with_name("torch.py").write_text("raise SystemExit")


@pytest.mark.parametrize("spoil", [lose_everything, flip_a_byte, add_a_module])
def test_registering_again_mends_a_version_whose_files_were_lost_or_changed(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = sqlite_store(tmp_path)
    store.register(save_toy_base)
    spoil(tmp_path)
    with pytest.raises(StorageError, match="version 1 of arms-router is refused"):
        store.registry.load("1")
    mended = store.register(save_toy_base)
    assert "mended, its files are put back: version 1 of arms-router is refused" in caplog.text
    assert versions(store) == [(1, "base")]
    assert store.registry.load("1").digest == mended.digest


def test_files_are_not_put_into_a_version_that_was_another(store: Store) -> None:
    client, digest = store.client, store.registry.find("2").digest
    client.delete_model_version(MODEL, "2")
    client.set_model_version_tag(MODEL, "1", "arms.digest", digest)
    with pytest.raises(StorageError, match="its logged model is not the one of digest"):
        store.register(save_toy_cascade)


def test_champion_that_was_set_by_other_means_is_replaced_only_by_force(store: Store) -> None:
    first, second, third = store.registry.versions()
    store.promote(first)
    store.client.set_registered_model_alias(MODEL, "champion", "2")
    with pytest.raises(StorageError, match="points to version 2, but the last entry of its history made version 1"):
        store.promote(third)
    now = store.registry.find("2")
    store.registry.promote(second, who="Ada", when="2026-01-03", why="it is good", champion=now, forced=True)
    assert store.registry.history().problems == ()
    assert store.registry.history().champion == 2


REGISTER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from arms_model.registry import Origin, Registry
    uri, lock, served, experiment, run = sys.argv[1:]
    registry = Registry(uri, model="arms-router", lock=Path(lock))
    registry.versions()
    print("ready", flush=True)
    sys.stdin.readline()
    origin = Origin(experiment_id=experiment, run_id=run, tags={}, description="", requirements=("arms-router",))
    version, is_new = registry.register(Path(served), origin)
    print(version.number, is_new, flush=True)
""")


@pytest.mark.parametrize("locks", [("lock", "lock"), ("one", "other")], ids=["one lock", "a lock each"])
def test_two_registrations_at_once_make_one_version(store: Store, tmp_path: Path, locks: tuple[str, str]) -> None:
    save_toy_cascade(tmp_path / "served", tau=0.75)
    ends = [str(tmp_path / "served"), store.origin.experiment_id, store.origin.run_id]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, store.uri, str(tmp_path / lock), *ends],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for lock in locks
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in running:  # both are loaded and wait: they go at the same moment
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    found = [number for number, strategy in versions(store) if number > 3]
    assert len(found) == 1
    assert sorted(out.split() for out, _ in printed) == [[str(found[0]), "False"], [str(found[0]), "True"]]


def test_version_is_found_by_number_and_alias(store: Store) -> None:
    store.registry.set_challenger(store.registry.find("3"))
    assert store.registry.find("challenger").number == store.registry.find("3").number == 3
    store.registry.set_challenger(None)
    with pytest.raises(DataError, match=r"no version 'challenger' .*; known are: 1, 2, 3, champion, challenger"):
        store.registry.find("challenger")


def test_promotion_moves_the_alias_and_is_written_down(store: Store) -> None:
    first, second, _ = store.registry.versions()
    store.promote(first, "the first")
    store.registry.set_challenger(second)
    store.promote(second, "better by 0.02")
    assert store.registry.find("champion").number == 2
    assert store.registry.alias("challenger") is None  # it is the champion now
    entries = store.registry.history().entries
    assert [(e.number, e.from_version, e.to_version, e.who, e.why) for e in entries] == [
        (1, None, 1, "Ada", "the first"),
        (2, 1, 2, "Ada", "better by 0.02"),
    ]
    assert store.registry.history().problems == ()


def test_rollback_goes_back_step_by_step_and_is_written_down(store: Store) -> None:
    for version in store.registry.versions():
        store.promote(version)
    for expected in (2, 1):
        store.registry.rollback(who="Ada", when="2026-01-02T00:00:00+00:00", why="it was worse")
        assert store.registry.find("champion").number == expected
    assert [entry.action for entry in store.registry.history().entries[-2:]] == ["rollback", "rollback"]
    with pytest.raises(DataError, match="no champion before this one"):
        store.registry.rollback(who="Ada", when="2026-01-02T00:00:00+00:00", why="once more")


def test_champion_that_changed_meanwhile_is_not_replaced(store: Store) -> None:
    first, second, third = store.registry.versions()
    store.promote(first)
    compared_with = store.registry.find("1")
    store.promote(second)
    with pytest.raises(DataError, match="the champion became version 2 meanwhile, not 1"):
        store.registry.promote(third, who="Ada", when="", why="better", champion=compared_with)


def test_champion_is_not_promoted_again(store: Store) -> None:
    store.promote(store.registry.find("1"))
    with pytest.raises(DataError, match="version 1 is the champion already"):
        store.promote(store.registry.find("1"))


def test_edited_history_is_seen_and_nothing_is_added_to_it(store: Store) -> None:
    first, second, third = store.registry.versions()
    store.promote(first)
    store.promote(second)
    key = "arms.history.000001"
    text = store.client.get_registered_model(MODEL).tags[key]
    store.client.set_registered_model_tag(MODEL, key, text.replace("Ada", "Eve"))
    assert store.registry.history().problems == (
        "arms.history.000002 does not follow the entry before it: one of the two was changed",
    )
    with pytest.raises(StorageError, match="the history is broken"):
        store.promote(third)
    assert store.registry.find("champion").number == 2


def test_version_whose_digest_is_not_what_the_history_says_is_refused(store: Store) -> None:
    store.promote(store.registry.find("1"))
    store.client.set_model_version_tag(MODEL, "1", "arms.digest", store.registry.find("2").digest)
    with pytest.raises(StorageError, match="the history says that it served"):
        store.registry.load("1")


def test_pyfunc_gives_what_our_own_loading_gives(store: Store, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(store.uri)
    store.promote(store.registry.find("2"))
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    (tmp_path / "3.png").write_bytes(pictures()[3])
    frame = pd.DataFrame(
        {
            "question": questions()[:4],
            "image": [*pictures()[:3], None],
            "image_path": [None, None, None, str(tmp_path / "3.png")],
            "choices": CHOICES[:4],
            "candidates": [None, ["b", "c"], None, None],
        }
    )
    found = model.predict(frame).to_dict("records")
    ours = store.registry.load("champion").answer(
        questions()[:4], pictures()[:4], choices=CHOICES[:4], candidates=[None, ["b", "c"], None, None]
    )
    for row, answer in zip(found, ours, strict=True):
        assert (row["vlm"], row["reason"]) == (answer.vlm, answer.reason)
        np.testing.assert_allclose(list(row["confidences"].values()), list(answer.confidences.values()), atol=1e-6)
    alone = model.predict(pd.DataFrame({"question": questions()[:1], "image": pictures()[:1]}))
    assert list(alone["confidences"][0]) == ["a", "b", "c", "d"]
    mlflow.set_tracking_uri(None)
    assert store.registry.load("champion").vlms == ("a", "b", "c", "d")  # and MLflow left nothing in the store


def test_logged_model_holds_no_pickle_and_no_path_of_this_machine(three: Path) -> None:
    files = [path for path in (three / "artifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith(b"\x80")  # how a pickle begins
        if path.suffix != ".safetensors":
            assert str(three) not in content.decode()
            assert str(Path.cwd()) not in content.decode()


def test_store_that_is_away_is_said_without_its_password(tmp_path: Path) -> None:
    registry = Registry("http://ada:secret@127.0.0.1:9", model=MODEL, lock=tmp_path / "lock")
    with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9 does not do what is asked") as caught:
        registry.versions()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a'or'1"])
def test_name_that_mlflow_would_not_take_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"register\.model"):
        Registry(f"sqlite:///{tmp_path}/x.db", model=name, lock=tmp_path / "lock")
