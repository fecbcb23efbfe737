import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arms_model.errors import DataError
from arms_model.pictures import check_header, decode_picture, open_picture


@pytest.fixture
def drawing() -> Image.Image:
    """Noise, so that no format packs it into a few bytes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def huge_png(path: Path, *, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header promises width x height px."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_picture_opens_in_every_format(tmp_path: Path, drawing: Image.Image, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    drawing.save(path)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert picture.size == (60, 40)
    assert check_header(path) == (60, 40)


def test_missing_picture_is_refused_by_name(tmp_path: Path) -> None:
    for check in (open_picture, check_header):
        with pytest.raises(DataError, match=r"lost\.png is missing; put the file there"):
            check(tmp_path / "lost.png")


def test_empty_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for check in (open_picture, check_header):
        with pytest.raises(DataError, match=r"empty\.png is empty \(0 bytes\)"):
            check(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_truncated_picture_is_refused_by_name(tmp_path: Path, drawing: Image.Image, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    drawing.save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=rf"cut\.{suffix}"):
        open_picture(path)


def test_damaged_png_is_refused(tmp_path: Path, drawing: Image.Image) -> None:
    path = tmp_path / "damaged.png"
    drawing.save(path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.png .* is truncated or damaged"):
        open_picture(path)


@pytest.mark.parametrize(
    "content", [b"not a picture at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.png"
    path.write_bytes(content)
    for check in (open_picture, check_header):
        with pytest.raises(DataError, match=r"text\.png \(\d+ bytes\) is no picture that can be read"):
            check(path)


def test_200_megapixels_are_refused_from_the_header(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "huge.png", width=20_000, height=10_000)
    for check in (open_picture, check_header):
        with pytest.raises(DataError, match=r"huge\.png has 20000 x 10000 px \(200,000,000\), at most 100,000,000"):
            check(path)


def test_max_pixels_replaces_the_limit_of_pil(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "huge.png", width=20_000, height=10_000)
    assert check_header(path, max_pixels=200_000_000) == (20_000, 10_000)
    with pytest.raises(DataError, match="at most 199,999,999"):
        check_header(path, max_pixels=199_999_999)


def test_limit_of_pil_is_as_before_after_many_threads(tmp_path: Path, drawing: Image.Image) -> None:
    drawing.save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [open_picture(tmp_path / "a.png") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), "white")
    picture.paste((255, 0, 0), (0, 0, 20, 20))  # red in the left upper corner as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = open_picture(tmp_path / "turned.png")
    assert shown.size == (40, 60)
    assert shown.getpixel((35, 5)) == (255, 0, 0)
    assert shown.getpixel((5, 5)) == (255, 255, 255)


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    see_through = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    see_through.putpixel((1, 1), (0, 0, 255, 255))
    see_through.save(tmp_path / "alpha.png")
    shown = open_picture(tmp_path / "alpha.png")
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert shown.getpixel((1, 1)) == (0, 0, 255)


def test_palette_with_transparency_is_shown_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 0, 200, 0])
    palette.putpixel((2, 2), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    shown = open_picture(tmp_path / "palette.png")
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert shown.getpixel((2, 2)) == (0, 200, 0)


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    shown = np.asarray(open_picture(tmp_path / "deep.png"))
    assert shown[0, :, 0].tolist() == [0, 127, 255]  # 32768 * 255 / 65535 = 127.5, cut


def test_error_text_has_the_given_name() -> None:
    with pytest.raises(DataError, match="picture of request 7 is empty"):
        decode_picture(b"", name="of request 7")
