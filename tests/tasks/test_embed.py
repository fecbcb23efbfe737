import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from arms_model.encoders.pixels import NAMES as PIXEL_NAMES
from arms_model.encoders.surface import SurfaceEncoder
from arms_model.errors import DataError
from tasks import embed
from tasks.common.encoding import Item, StoredEncoder, encode_missing
from tasks.common.tables import SCHEMAS, write_table
from tasks.common.vectors import VectorStore

CHECKOUT = Path(__file__).parents[2]
SETTINGS = {"questions": {"surface": {"kind": "surface"}}, "pictures": {"pixels": {"kind": "pixels"}}, "batch_size": 4}


def write_queries(folder: Path, numbers: range) -> pl.DataFrame:
    """Queries of made-up pictures; two queries share each picture, every third question is the same."""
    images = folder / "queries" / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        picture = number // 2
        path = images / f"{picture}.png"
        if not path.exists():
            Image.new("RGB", (8 + picture, 8), (picture * 5 % 255, 40, 200)).save(path)
        question = "How many?" if number % 3 == 0 else f"Which of {number}?"
        rows.append(
            dict.fromkeys(SCHEMAS["queries"], "x")
            | {"query_id": f"q{number:04}", "question": question, "choices": [] if number % 3 == 0 else ["cat", "dog"]}
            | {"image": path.name, "image_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        )
    frame = pl.DataFrame(rows, schema=SCHEMAS["queries"])
    write_table(folder / "queries" / "queries.parquet", frame, "queries")
    return frame


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params and ten queries, the current folder of the test."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, SETTINGS)
    write_queries(tmp_path, range(10))
    return tmp_path


def write_params(folder: Path, settings: dict[str, Any]) -> None:
    with (folder / "params.yaml").open("w") as handle:
        YAML(typ="safe").dump({"embed": settings, "gates": {"embed": {}}}, handle)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.embed"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


def sealed(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "embed").iterdir())}


def test_sealed_vectors_are_those_of_each_query(workspace: Path) -> None:
    embed.body()
    index = pl.read_parquet("embed/index.parquet")
    assert index.schema == {"query_id": pl.String, "question_row": pl.Int32, "picture_row": pl.Int32}
    assert index["query_id"].to_list() == [f"q{number:04}" for number in range(10)]
    questions = load_file("embed/questions.safetensors")["surface"]
    pictures = load_file("embed/pictures.safetensors")["pixels"]
    assert questions.shape == (10, SurfaceEncoder().width)
    assert pictures.shape == (5, len(PIXEL_NAMES))
    assert questions.dtype == pictures.dtype == np.float32
    encoder = SurfaceEncoder()
    for number, (_, question_row, picture_row) in enumerate(index.iter_rows()):
        text = "How many?" if number % 3 == 0 else f"Which of {number}?\nA. cat\nB. dog"
        np.testing.assert_array_equal(questions[question_row], encoder.prepare(text))
        width = np.exp(pictures[picture_row, PIXEL_NAMES.index("log_width")])
        assert width == pytest.approx(8 + number // 2)


def test_encoders_json_names_modality_identity_width_and_settings(workspace: Path) -> None:
    embed.body()
    described = json.loads(Path("embed/encoders.json").read_text())
    assert described["pixels"] == {
        "modality": "picture",
        "identity": '{"kind": "pixels", "version": 1}',
        "width": len(PIXEL_NAMES),
        "settings": {"kind": "pixels"},
    }
    assert described["surface"]["modality"] == "question"


def test_only_new_items_are_encoded(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    embed.body()
    assert "surface: encoded 7 new of 7 questions" in caplog.messages  # ten questions, four of them the same
    assert "pixels: encoded 5 new of 5 pictures" in caplog.messages
    before = sealed(workspace)
    caplog.clear()
    embed.body()
    assert "surface: encoded 0 new of 7 questions" in caplog.messages
    assert "pixels: encoded 0 new of 5 pictures" in caplog.messages
    assert sealed(workspace) == before
    caplog.clear()
    write_queries(workspace, range(14))
    embed.body()
    assert "surface: encoded 3 new of 10 questions" in caplog.messages
    assert "pixels: encoded 2 new of 7 pictures" in caplog.messages


def test_stored_vectors_are_read_without_their_pictures(workspace: Path) -> None:
    embed.body()
    before = sealed(workspace)
    for path in Path("queries/images").iterdir():
        path.unlink()
    embed.body()
    assert sealed(workspace) == before


def test_same_content_gives_the_same_bytes_whatever_the_history(workspace: Path, tmp_path_factory: Any) -> None:
    write_queries(workspace, range(6))
    embed.body()
    write_queries(workspace, range(14))
    embed.body()
    grown = sealed(workspace)
    fresh = tmp_path_factory.mktemp("fresh")
    write_params(fresh, SETTINGS)
    write_queries(fresh, range(14))
    assert run(fresh).returncode == 0
    assert sealed(fresh) == grown


def test_damaged_shard_is_encoded_again(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    embed.body()
    before = sealed(workspace)
    for shard in Path(".arms/vectors").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-3])
    caplog.clear()
    embed.body()
    assert "pixels: encoded 5 new of 5 pictures" in caplog.messages
    assert "is damaged; it was set aside" in caplog.text
    assert sealed(workspace) == before


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other(path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(path)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (Path.unlink, "picture queries/images/3.png is missing"),
        (empty, "picture queries/images/3.png is empty (0 bytes)"),
        (cut, "picture queries/images/3.png"),
        (other, "but its query says"),
    ],
)
def test_bad_picture_stops_the_stage_by_name(workspace: Path, spoil: Callable[[Path], None], text: str) -> None:
    spoil(Path("queries/images/3.png"))
    result = run(workspace)
    assert result.returncode == 1
    assert text in result.stderr
    assert "3.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("embed").exists()
    assert not list(workspace.rglob("*.tmp"))


def test_picture_over_max_pixels_is_refused(workspace: Path) -> None:
    write_params(workspace, SETTINGS | {"max_pixels": 70})
    result = run(workspace)
    assert result.returncode == 1
    assert re.search(r"has \d+ x 8 px \(\d+\), at most 70 are allowed", result.stderr)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"questions": {"text": {"kind": "pixels"}}},
            "questions.text: kind 'pixels' encodes pictures; move it there",
        ),
        ({"pictures": {}}, "no encoder under pictures; name at least one"),
        ({"pictures": {"surface": {"kind": "pixels"}}}, "encoder name 'surface' stands under questions and pictures"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"batchsize": 1}, "embed.batchsize: unknown key; did you mean 'batch_size'?"),
        (
            {"pictures": {"p": {"kind": "pixels", "sise": 1}}},
            "embed.pictures.p.sise: unknown key; did you mean 'size'?",
        ),
    ],
)
def test_bad_settings_end_with_2_and_the_path(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    write_params(tmp_path, SETTINGS | settings)
    result = run(tmp_path)
    assert result.returncode == 2
    assert text in result.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_stage_leaves_nothing_half_written_and_goes_on(workspace: Path, sent: signal.Signals) -> None:
    write_queries(workspace, range(4000))
    expected = 2000
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.embed"], cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True
    )
    store = workspace / ".arms" / "vectors" / hashlib.sha256(b'{"kind": "pixels", "version": 1}').hexdigest()
    deadline = time.monotonic() + 60
    while not list(store.glob("*.safetensors")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sent)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, messages
    assert "the same command goes on from here" in messages
    assert not (workspace / "embed").exists()
    assert not list(workspace.rglob("*.tmp"))
    result = run(workspace)
    assert result.returncode == 0, result.stderr
    found = re.search(r"pixels: encoded (\d+) new of (\d+) pictures", result.stderr)
    assert found is not None
    new, total = map(int, found.groups())
    assert total == expected
    assert 0 < new < total
    assert load_file(workspace / "embed" / "pictures.safetensors")["pixels"].shape[0] == expected


@pytest.mark.parametrize("place", [".arms/vectors", "embed"])
def test_full_disk_leaves_nothing_half_written(workspace: Path, place: str) -> None:
    if place == "embed":  # with all vectors in the store, only sealing can fail
        assert run(workspace).returncode == 0
        shutil.rmtree(workspace / "embed")
    result = subprocess.run(
        [sys.executable, "-m", "tasks.embed"],
        cwd=workspace, env=environment(), capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert f"could not write {place}" in result.stderr
    assert "the file-size limit was met" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (workspace / "embed").exists()
    assert not list(workspace.rglob("*.tmp"))
    assert run(workspace).returncode == 0


class Reciprocal:
    """An encoder of numbers: vectors (x, 1/x), so that 0 has none."""

    identity, width, modality = "reciprocal", 2, "question"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def prepare(self, item: float) -> float:
        return item

    def encode(self, prepared: Any) -> Any:
        self.sizes.append(len(prepared))
        with np.errstate(divide="ignore"):
            return np.array([[x, np.float64(1) / x] for x in prepared], dtype=np.float32)


def number_item(number: float) -> Item:
    return Item(hashlib.sha256(str(number).encode()).hexdigest(), f"number {number}", lambda: number)


def test_vector_that_is_not_finite_stops_with_the_items_name(tmp_path: Path) -> None:
    stored = StoredEncoder("one-over", Reciprocal(), VectorStore(tmp_path, identity="reciprocal", width=2))
    with pytest.raises(DataError, match="encoder 'one-over' gave numbers that are not finite for number 0"):
        encode_missing([number_item(x) for x in (1, 2, 0, 4)], [stored], batch_size=2, what="number")


def test_batches_are_always_full_and_items_twice_are_encoded_once(tmp_path: Path) -> None:
    encoder = Reciprocal()
    stored = StoredEncoder("one-over", encoder, VectorStore(tmp_path, identity="reciprocal", width=2))
    items = [number_item(x) for x in (1, 2, 4, 5, 1, 2, 8)]
    assert encode_missing(items, [stored], batch_size=2, what="number") == {"one-over": 5}
    assert encoder.sizes == [2, 2, 2]
    assert stored.store.read([item.key for item in items])[:, 1].tolist() == [
        1,
        0.5,
        0.25,
        np.float32(0.2),
        1,
        0.5,
        0.125,
    ]


def test_each_encoder_gets_only_what_it_lacks(tmp_path: Path) -> None:
    first = StoredEncoder("first", Reciprocal(), VectorStore(tmp_path, identity="first", width=2))
    second = StoredEncoder("second", Reciprocal(), VectorStore(tmp_path, identity="second", width=2))
    encode_missing([number_item(x) for x in (1, 2)], [first], batch_size=1, what="number")
    loaded: list[float] = []

    def counted(number: float) -> Item:
        item = number_item(number)
        return Item(item.key, item.name, lambda: loaded.append(number) or number)

    counts = encode_missing([counted(x) for x in (1, 2, 4)], [first, second], batch_size=1, what="number")
    assert counts == {"first": 1, "second": 3}
    assert sorted(loaded) == [1, 2, 4]  # each once, though two encoders lack the 4
