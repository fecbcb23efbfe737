import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from arms_model.errors import DataError
from tasks.importers.archives import unpack, unpacked


def _zip(path: Path, members: dict[str, bytes], *, mode: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if mode is not None:
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def _tar(path: Path, members: list[tarfile.TarInfo], content: bytes = b"", *, packing: str = "gz") -> Path:
    with tarfile.open(path, f"w:{packing}") as archive:
        for member in members:
            member.size = len(content) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(content))
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("packing", ["zip", "", "gz", "bz2", "xz"])
def test_archive_is_unpacked_and_cleared_away(packing: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    if packing == "zip":
        _zip(path, {"top/": b"", "top/a.txt": b"hello"})
    else:
        _tar(path, [_member("top", tarfile.DIRTYPE), _member("top/a.txt")], b"hello", packing=packing)
    with unpacked(path) as folder:
        assert _files(folder) == {"top/a.txt": b"hello"}
    assert not folder.exists()


def test_folder_is_read_where_it_is(tmp_path: Path) -> None:
    with unpacked(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil"])
def test_name_that_leads_outside_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    target = tmp_path / "deep/target"
    target.mkdir(parents=True)
    for path in (
        _zip(tmp_path / "a.zip", {"good": b"1", name: b"2"}),
        _tar(tmp_path / "a.tgz", [_member(name)], b"2"),
    ):
        with pytest.raises(DataError, match="leads out of its folder"):
            unpack(path, target)
    assert not list(tmp_path.rglob("evil"))
    assert not list(target.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_with_a_link_or_device_is_refused(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _tar(tmp_path / "a.tar.gz", [_member("odd", kind, "/etc/passwd")])
    with pytest.raises(DataError, match="link or a device"):
        unpack(path, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _zip(tmp_path / "a.zip", {"odd": b"/etc/passwd"}, mode=0o120777)
    with pytest.raises(DataError, match="holds the link"):
        unpack(path, tmp_path / "target")


@pytest.mark.parametrize("packing", ["zip", "gz", "xz"])
def test_bomb_is_refused_before_it_is_unpacked(packing: str, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    content = bytes(120_000_000)
    path = tmp_path / "bomb"
    if packing == "zip":
        _zip(path, {"zeros": content})
    else:
        _tar(path, [_member("zeros")], content, packing=packing)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(path, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_bomb_that_lies_about_its_size_never_fills_the_disk(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _zip(tmp_path / "bomb.zip", {"zeros": bytes(120_000_000)})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 10)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path / "target")
    assert sum(len(data) for data in _files(tmp_path / "target").values()) <= 10


def test_zip_that_unpacks_in_memory_before_its_size_is_looked_at_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", method) as archive:
            archive.writestr("zeros", bytes(1_000_000))
        with pytest.raises(DataError, match="unusual way"):
            unpack(tmp_path / "bomb.zip", tmp_path / "target")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_tar_with_an_endless_name_does_not_fill_the_memory(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    header = _member("long", kind)
    header.size = 100_000_000
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb") as handle:
        handle.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size + 2048))
    tracemalloc.start()
    with pytest.raises(DataError, match="100,000,"):
        unpack(path, tmp_path / "target")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_large_data_that_hardly_packs_is_no_bomb(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _zip(tmp_path / "a.zip", {"zeros": bytes(1_000_000)})  # packs to a thousandth, but is small
    unpack(path, tmp_path / "target")
    assert _files(tmp_path / "target") == {"zeros": bytes(1_000_000)}


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.importers.archives.MAX_FILES", 10)
    (tmp_path / "target").mkdir()
    path = _zip(tmp_path / "a.zip", {f"{number}": b"" for number in range(11)})
    with pytest.raises(DataError, match="10 files"):
        unpack(path, tmp_path / "target")


@pytest.mark.parametrize("packing", ["zip", "", "gz", "xz", "bz2"])
def test_truncated_archive_is_refused(packing: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 200
    path = tmp_path / "data"
    if packing == "zip":
        _zip(path, {"a": content})
    else:
        _tar(path, [_member("a"), _member("b"), _member("c")], content, packing=packing)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / f"target{share}").mkdir()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"damaged|no zip or tar|cut off"):
            unpack(path, tmp_path / f"target{share}")


def test_tar_that_was_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _tar(tmp_path / "a.tar", [_member("a"), _member("b")], bytes(range(256)) * 2, packing="")
    path.write_bytes(path.read_bytes()[:1024])  # the first file's header and content
    with pytest.raises(DataError, match="cut off"):
        unpack(path, tmp_path / "target")


def test_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = _zip(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"})
    with pytest.raises(DataError, match="cannot be a file"):
        unpack(path, tmp_path / "target")


def test_what_is_no_archive_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no zip or tar archive"):
        unpack(tmp_path / "notes.txt", tmp_path)
    with pytest.raises(DataError, match="is missing"):
        unpack(tmp_path / "nothing.zip", tmp_path)
