"""Tampered artifacts: each is refused by the name of what is wrong, and none of their code ever runs.

Three sorts: files changed under tags that say otherwise; tags changed; and everything changed so that all hashes fit,
as somebody could who may write to the store and its tags.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arms_model.errors import StorageError
from tests.arms_model.stores import Logged, sqlite_store
from tests.arms_model.toys import save_toy_cascade

Tamper = Callable[[Logged], None]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    store = sqlite_store(tmp_path_factory.mktemp("store"))
    version = store.register(save_toy_cascade)
    (described,) = (store.folder / "artifacts").rglob("MLmodel")
    shutil.copytree(described.parent, store.folder / "backup")
    return Logged(store, version, described.parent, store.folder / "backup")


@pytest.fixture
def logged(registered: Logged) -> Iterator[Logged]:
    """A registered cascade that the test may spoil."""
    yield registered
    registered.restore()


def flip(name: str) -> Tamper:
    """Change a byte in the middle."""

    def tamper(logged: Logged) -> None:
        path = logged.folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return tamper


def add(name: str, content: bytes) -> Tamper:
    def tamper(logged: Logged) -> None:
        path = logged.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return tamper


def remove(name: str) -> Tamper:
    return lambda logged: (logged.folder / name).unlink()


def link(name: str) -> Tamper:
    """Put a link to the same content in a file's or folder's place."""

    def tamper(logged: Logged) -> None:
        path = logged.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(logged.backup / name)

    return tamper


def pipe(logged: Logged) -> None:
    path = logged.served / "base/config.json"
    path.unlink()
    os.mkfifo(path)


def swap_routers(logged: Logged) -> None:
    (logged.served / "base").rename(logged.served / "other")
    (logged.served / "new").rename(logged.served / "base")
    (logged.served / "other").rename(logged.served / "new")


def cut(logged: Logged) -> None:
    path = logged.served / "base/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def blow_up(logged: Logged) -> None:
    with (logged.served / "base/weights.safetensors").open("r+b") as handle:
        handle.truncate(2**40)  # a hole of a terabyte: refused by its size, never read


def remove_everything(logged: Logged) -> None:
    shutil.rmtree(logged.folder)


PICKLE = pickle.dumps({"weights": [1, 2, 3]})
CHANGED_FILES = {
    "a byte of the base router's weights": (flip("artifacts/served/base/weights.safetensors"), "base/weights"),
    "a byte of the new router's weights": (flip("artifacts/served/new/weights.safetensors"), "new/weights.safetensors"),
    "a byte of a configuration": (flip("artifacts/served/base/config.json"), "base/config.json has sha256"),
    "a byte of served.json": (flip("artifacts/served/served.json"), "served.json has sha256"),
    "a byte of MLmodel": (flip("MLmodel"), "MLmodel has sha256"),
    "a byte of the code": (flip("pyfunc_model.py"), "pyfunc_model.py has sha256"),
    "a byte of the requirements": (flip("requirements.txt"), "requirements.txt has sha256"),
    "a byte of conda.yaml": (flip("conda.yaml"), "conda.yaml has sha256"),
    "a pickle beside MLmodel": (add("python_model.pkl", PICKLE), "python_model.pkl does not belong there"),
    "a pickle beside the weights": (add("artifacts/served/base/weights.pkl", PICKLE), "weights.pkl does not belong"),
    "a pickle in a folder of its own": (add("artifacts/more/x.pkl", PICKLE), "artifacts/more does not belong there"),
    "a hidden file": (add("artifacts/served/.hidden", b""), "artifacts/served/.hidden does not belong there"),
    "a module beside the code": (add("torch.py", b"raise SystemExit"), "torch.py does not belong there"),
    "no weights": (remove("artifacts/served/base/weights.safetensors"), "base/weights.safetensors is missing"),
    "no configuration": (remove("artifacts/served/new/config.json"), "new/config.json is missing"),
    "no served.json": (remove("artifacts/served/served.json"), "served.json is missing"),
    "no MLmodel": (remove("MLmodel"), "MLmodel is missing"),
    "nothing at all": (remove_everything, "is missing"),
    "weights that are a link": (link("artifacts/served/base/weights.safetensors"), "weights.safetensors is a link"),
    "a folder that is a link": (link("artifacts/served/new"), "artifacts/served/new is a link"),
    "a file that is a pipe": (pipe, "config.json is a link or no plain file"),
    "routers in each other's place": (swap_routers, "/config.json has"),
    "weights cut short": (cut, "base/weights.safetensors has"),
    "weights of a terabyte": (blow_up, "base/weights.safetensors has 1,099,511,627,776 bytes"),
}


def other_files(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tamper:
    return lambda logged: logged.tag("arms.files", json.dumps(change(json.loads(logged.version.tags["arms.files"]))))


def without_files_tag(logged: Logged) -> None:
    logged.store.client.delete_model_version_tag("arms-router", str(logged.version.number), "arms.files")


def named_pickle(logged: Logged) -> None:
    (logged.folder / "python_model.pkl").write_bytes(PICKLE)
    logged.seal()


ENTRY = [1, "0" * 64]
CHANGED_TAGS = {
    "no list of files": (without_files_tag, "tag arms.files is missing"),
    "a list that is none": (lambda logged: logged.tag("arms.files", "[1]"), "tag arms.files is not as it is written"),
    "a list without sizes": (other_files(lambda files: dict.fromkeys(files, 1)), "not as it is written"),
    "a path that climbs out": (
        other_files(lambda files: files | {"../../../etc/passwd": ENTRY}),
        "names '../../../etc/passwd', which no version may hold",
    ),
    "a path that is absolute": (other_files(lambda files: files | {"/etc/passwd": ENTRY}), "names '/etc/passwd'"),
    "a path that climbs out from inside": (
        other_files(lambda files: files | {"artifacts/served/../../x": ENTRY}),
        "names 'artifacts/served/../../x'",
    ),
    "a pickle that is named and there": (named_pickle, "names 'python_model.pkl', which no version may hold"),
    "a list without the code": (
        other_files(lambda files: {name: entry for name, entry in files.items() if name != "pyfunc_model.py"}),
        "does not name pyfunc_model.py",
    ),
    "another digest": (lambda logged: logged.tag("arms.digest", "f" * 64), "served.json has sha256"),
}


def sealed_manifest(change: Callable[[Any], Any], *, but: tuple[str, ...] = ()) -> Tamper:
    """Change served.json and make all hashes fit."""

    def tamper(logged: Logged) -> None:
        logged.edit_json("served.json", change)
        logged.seal(but=but)

    return tamper


def sealed_config(change: Callable[[Any], Any]) -> Tamper:
    def tamper(logged: Logged) -> None:
        logged.edit_json("base/config.json", change)
        logged.seal()

    return tamper


def sealed_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Tamper:
    """Change the tensors and make all hashes fit."""

    def tamper(logged: Logged) -> None:
        path = logged.served / "base/weights.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        logged.seal_weights()
        logged.seal()

    return tamper


def renamed(old: str, new: str) -> Tamper:
    return sealed_weights(lambda weights: weights.update({new: weights.pop(old)}))


def pickled_weights(logged: Logged) -> None:
    torch.save({"a": torch.zeros(2)}, logged.served / "base/weights.safetensors")
    logged.seal_weights()
    logged.seal()


def deep_manifest(logged: Logged) -> None:
    (logged.served / "served.json").write_text('{"format": ' + "[" * 100_000 + "]" * 100_000 + "}")
    logged.seal(but=("served.json",))


def climbing_manifest(logged: Logged) -> None:
    logged.edit_json(
        "served.json", lambda manifest: manifest | {"files": manifest["files"] | {"../x": {"bytes": 1, "sha256": "0"}}}
    )
    logged.seal(but=("served.json",))


def huge_config(logged: Logged) -> None:
    with (logged.served / "base/config.json").open("a") as handle:
        handle.write(" " * 5_000_000)
    logged.seal()


def nested(config: Any, **changes: Any) -> Any:
    return config | {"router": config["router"] | changes}


EVERYTHING_CHANGED = {
    "a path that climbs out of the folder": (climbing_manifest, "too many or missing: ['../x']"),
    "another format": (sealed_manifest(lambda manifest: manifest | {"format": 99}), "format is 99, expected 1"),
    "an impossible tau": (sealed_manifest(lambda manifest: manifest | {"tau": 1.5}), "tau is 1.5"),
    "a tau that is no number": (sealed_manifest(lambda manifest: manifest | {"tau": float("nan")}), "NaN is no JSON"),
    "a cascade without its tau": (sealed_manifest(lambda manifest: manifest | {"tau": None}), "files must be exactly"),
    "an unknown key": (sealed_manifest(lambda manifest: manifest | {"run": "me"}), "served.json.run: unknown key"),
    "VLMs of the other router": (
        sealed_manifest(lambda manifest: manifest | {"vlms": manifest["vlms"] | {"a": "new"}}),
        "vlms do not fit the routers (a)",
    ),
    "a VLM that no router knows": (
        sealed_manifest(lambda manifest: manifest | {"vlms": manifest["vlms"] | {"z": "new"}}),
        "vlms do not fit the routers (z)",
    ),
    "JSON a hundred thousand deep": (deep_manifest, "served.json"),
    "a renamed tensor": (renamed("profile_vectors", "vectors"), "base: config.json and weights.safetensors do not"),
    "a renamed tensor of a network": (
        renamed("members.0.gate.linear.weight", "members.0.gate.w"),
        "gate.linear.weight",
    ),
    "a renamed tensor of the calibration": (renamed("calibration.bias", "calibration.b"), "calibration.bias"),
    "an additional tensor": (sealed_weights(lambda w: w.update(more=torch.zeros(3))), "knows nothing of (more)"),
    "a tensor that only seems to fit": (
        sealed_weights(lambda w: w.update({"calibration.scale": w["calibration.scale"][:1].clone()})),
        "tensor 'calibration.scale' is (1,), expected (2,)",
    ),
    "a tensor that is not finite": (
        sealed_weights(lambda w: w.update({"calibration.bias": w["calibration.bias"] * float("nan")})),
        "tensor 'calibration.bias' holds a number that is not finite",
    ),
    "weights that are a pickle": (pickled_weights, "base holds no readable router"),
    "an unknown key of the configuration": (sealed_config(lambda c: nested(c, code="x")), "router.code: unknown key"),
    "an unknown encoder": (
        sealed_config(lambda c: nested(c, question_encoders={"surface": {"kind": "pickle"}})),
        "question_encoders",
    ),
    "a million networks": (sealed_config(lambda c: nested(c, num_members=10**6)), "does not fit its config.json"),
    "a configuration of 5 MB": (huge_config, "base/config.json has 5,0"),
}
CASES = {**CHANGED_FILES, **CHANGED_TAGS, **EVERYTHING_CHANGED}


@pytest.mark.parametrize("name", CASES)
def test_tampered_artifact_is_refused_by_name(name: str, logged: Logged) -> None:
    tamper, words = CASES[name]
    tamper(logged)
    with pytest.raises(StorageError) as caught:
        logged.store.registry.load("1")
    assert words in str(caught.value)
    assert str(caught.value).startswith("version 1 of arms-router is refused: ")
    assert "arms-registry-" not in str(caught.value)  # the folder of the download is gone: its path helps nobody


def test_untouched_artifact_is_loaded(logged: Logged) -> None:
    assert logged.store.registry.load("1").digest == logged.version.digest


def test_code_in_the_artifact_never_runs_even_where_all_hashes_fit(logged: Logged, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    with (logged.folder / "pyfunc_model.py").open("a") as handle:
        handle.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    logged.seal()
    assert logged.store.registry.load("1").vlms == ("a", "b", "c", "d")
    assert not marker.exists()
