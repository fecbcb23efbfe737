import resource
import subprocess
import sys
from pathlib import Path

import pytest

from arms_model.errors import DataError, StorageError
from tasks.common.files import folder_written_whole, full_disk_reason, read_json, write_json, written_whole


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_the_block_ended_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert _names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_stopped_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(stop), written_whole(path) as temporary:
        temporary.write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with folder_written_whole(path) as temporary:
        (temporary / "new.txt").write_text("new")
        assert _names(path) == ["old.txt"]
    assert _names(path) == ["new.txt"]
    assert _names(tmp_path) == ["out"]


def test_stopped_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="stop"), folder_written_whole(path) as temporary:
        (temporary / "new.txt").write_text("half")
        raise ValueError("stop")
    assert _names(path) == ["old.txt"]
    assert _names(tmp_path) == ["out"]


def test_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(FileNotFoundError), folder_written_whole(path) as temporary:
        temporary.rmdir()  # so that the old folder is set aside and the rename of the new one fails
    assert _names(path) == ["old.txt"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("stopped_at", [1, 2])
@pytest.mark.parametrize("is_before", [True, False])
def test_folder_stopped_at_each_rename_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, is_before: bool
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old.txt").write_text("old")
    replace, count = Path.replace, 0

    def stopped(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == stopped_at and is_before:
            raise KeyboardInterrupt
        found = replace(self, target)
        if count == stopped_at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), folder_written_whole(path) as temporary:
        (temporary / "new.txt").write_text("new")
    is_new = stopped_at == 2 and not is_before
    assert _names(path) == (["new.txt"] if is_new else ["old.txt"])
    assert _names(tmp_path) == ["out"]


def test_place_that_may_not_be_written_becomes_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from arms_model.errors import StorageError\n"
        "from tasks.common.files import folder_written_whole, written_whole\n"
        "if os.geteuid() == 0:\n"
        "    os.setuid(65534)  # root may write anywhere\n"
        "for write in (written_whole, folder_written_whole):\n"
        "    try:\n"
        "        with write(Path(sys.argv[1])):\n"
        "            print('written')\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.bin")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    tmp_path.chmod(0o755)
    assert result.stdout.count("a.bin: you may not write there") == 2
    assert f"make {tmp_path} writable, or work in another folder, and run the same command again" in result.stdout


def test_input_that_may_not_be_read_is_no_storage_error(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), written_whole(tmp_path / "a.bin"):
        raise PermissionError(13, "Permission denied", "/elsewhere/input.csv")


def test_read_only_file_system_becomes_a_storage_error(tmp_path: Path) -> None:
    expected = r"a\.bin: the file system is read-only"
    with pytest.raises(StorageError, match=expected), written_whole(tmp_path / "a.bin") as temporary:
        raise OSError(30, "Read-only file system", str(temporary))


def test_json_comes_back_as_written_with_sorted_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, "é"], "a": None})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1, "é"]}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").index('"a"') < 10


def test_bad_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"cut\.json is no valid JSON"):
        read_json(tmp_path / "cut.json")
    with pytest.raises(DataError, match=r"gone\.json is missing; run the stage"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the disk quota is used up"),
        (RuntimeError("File too large (os error 27)"), "the file-size limit was met"),
        (OSError(13, "Permission denied"), None),
        (ValueError("width 28 is wrong"), None),
    ],
)
def test_full_disk_is_told_from_other_errors(error: BaseException, reason: str | None) -> None:
    assert full_disk_reason(error) == reason


def test_full_disk_that_a_library_tells_in_words_becomes_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.bin: the disk is full"), written_whole(tmp_path / "a.bin"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert _names(tmp_path) == []


def test_full_disk_becomes_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    # a limit on the size of files stands in for a full disk: the write itself fails in the kernel
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from arms_model.errors import StorageError\n"
        "from tasks.common.files import written_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with written_whole(Path(sys.argv[1])) as temporary:\n"
        "        temporary.write_bytes(bytes(5000))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.bin")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "could not write" in result.stdout
    assert "run the same command again" in result.stdout
    assert _names(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000  # the limit was the child's own


def test_storage_error_ends_with_exit_code_1() -> None:
    assert StorageError.exit_code == 1
