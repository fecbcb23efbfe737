import hashlib
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from arms_model.errors import DataError, StorageError
from tasks.common.vectors import VectorStore

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]


def vectors(num_items: int, *, width: int = 3, first: float = 0.0) -> np.ndarray:
    return np.arange(num_items * width, dtype=np.float32).reshape(num_items, width) + np.float32(first)


def open_store(root: Path, *, width: int = 3, identity: str = '{"kind": "toy"}') -> VectorStore:
    return VectorStore(root, identity=identity, width=width)


def shards(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def test_vectors_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add(KEYS[:4], vectors(4))
    store.add(KEYS[4:], vectors(2, first=100))
    for opened in (store, open_store(tmp_path)):
        assert len(opened) == 6
        assert KEYS[5] in opened
        found = opened.read([KEYS[5], KEYS[0], KEYS[3], KEYS[0]])
        assert found.dtype == np.float32
        assert found.tolist() == [[103, 104, 105], [0, 1, 2], [9, 10, 11], [0, 1, 2]]


def test_folder_is_the_sha256_of_the_encoders_identity(tmp_path: Path) -> None:
    open_store(tmp_path).add(KEYS[:1], vectors(1))
    folder = tmp_path / hashlib.sha256(b'{"kind": "toy"}').hexdigest()
    assert json.loads((folder / "encoder.json").read_text()) == {"identity": '{"kind": "toy"}', "width": 3}
    assert KEYS[0] not in open_store(tmp_path, identity='{"kind": "other"}')


def test_key_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add(KEYS[:1], vectors(1))
    with pytest.raises(StorageError, match=rf"lacks 1 of 2 vectors, first: {KEYS[1]}; encode them first"):
        store.read(KEYS[:2])


def test_another_width_is_refused_and_never_cut(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataError, match=r"shape \(2, 4\) came for 2 items .* expected \(2, 3\)"):
        store.add(KEYS[:2], vectors(2, width=4))
    store.add(KEYS[:2], vectors(2))
    with pytest.raises(StorageError, match=r"shape \(2, 3\), expected \(2, 5\).*never cut"):
        open_store(tmp_path, width=5)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataError, match="not finite"):
        store.add(KEYS[:1], np.array([[1, np.nan, 2]], dtype=np.float32))
    assert not shards(tmp_path)


def test_damaged_shard_is_set_aside_and_the_rest_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    store.add(KEYS[:2], vectors(2))
    (first,) = shards(tmp_path)
    store.add(KEYS[2:4], vectors(2, first=50))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1  # one bit of one number
    first.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        opened = open_store(tmp_path)
    assert f"{first} is damaged; it was set aside as {first.stem}.corrupt" in caplog.text
    assert KEYS[0] not in opened
    assert opened.read(KEYS[2:4]).tolist() == [[50, 51, 52], [53, 54, 55]]
    assert first.with_suffix(".corrupt").exists()
    opened.add(KEYS[:2], vectors(2))
    assert open_store(tmp_path).read(KEYS[:1]).tolist() == [[0, 1, 2]]


def test_truncated_shard_is_set_aside(tmp_path: Path) -> None:
    open_store(tmp_path).add(KEYS[:2], vectors(2))
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-5])
    assert len(open_store(tmp_path)) == 0


def test_shard_without_keys_is_set_aside(tmp_path: Path) -> None:
    content = save({"other": vectors(2)})
    folder = tmp_path / hashlib.sha256(b'{"kind": "toy"}').hexdigest()
    folder.mkdir()
    (folder / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    assert len(open_store(tmp_path)) == 0
    assert not shards(tmp_path)


def test_key_kept_twice_gives_one_vector_always_the_same(tmp_path: Path) -> None:
    one, other = open_store(tmp_path), open_store(tmp_path)
    one.add(KEYS[:2], vectors(2))
    other.add(KEYS[1:3], vectors(2, first=7))
    found = [open_store(tmp_path).read(KEYS[:3]).tolist() for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][1] in ([3, 4, 5], [7, 8, 9])


def test_equal_shards_are_one_file(tmp_path: Path) -> None:
    one, other = open_store(tmp_path), open_store(tmp_path)
    one.add(KEYS[:2], vectors(2))
    other.add(KEYS[:2], vectors(2))
    assert len(shards(tmp_path)) == 1


WRITER = """
import hashlib, sys, numpy as np
from pathlib import Path
from tasks.common.vectors import VectorStore
store = VectorStore(Path(sys.argv[1]), identity="toy", width=2)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 40):
    key = hashlib.sha256(str(number).encode()).hexdigest()
    store.add([key], np.full((1, 2), number, dtype=np.float32))
"""


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, first]) for first in ("0", "20")]  # 20 to 39 are written by both
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(60)]
    found = VectorStore(tmp_path, identity="toy", width=2).read(keys)
    assert found[:, 0].tolist() == list(range(60))


def test_full_disk_leaves_no_shard(tmp_path: Path) -> None:
    script = f"""
import resource, signal, numpy as np
from pathlib import Path
from arms_model.errors import StorageError
from tasks.common.vectors import VectorStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}))
store = VectorStore(Path({str(tmp_path)!r}), identity="toy", width=1000)
try:
    store.add(["00" * 32] * 10, np.zeros((10, 1000), dtype=np.float32))
except StorageError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "the file-size limit was met" in result.stdout, result.stderr
    assert not shards(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
