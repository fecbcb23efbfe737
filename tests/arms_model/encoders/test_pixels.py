import math

import numpy as np
import pytest
from PIL import Image

from arms_model.encoders.pixels import NAMES, PixelsEncoder, pixel_numbers


def test_numbers_of_a_half_white_half_black_picture() -> None:
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste((0, 0, 0), (0, 0, 10, 10))  # black on the left
    numbers = pixel_numbers(picture)
    assert numbers["log_width"] == pytest.approx(math.log(20))
    assert numbers["log_aspect"] == pytest.approx(math.log(2))
    assert numbers["white_share"] == numbers["black_share"] == 0.5
    assert numbers["grey_mean"] == pytest.approx(0.5)
    assert numbers["grey_deviation"] == pytest.approx(0.5)
    assert numbers["colourfulness"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["log_colours"] == pytest.approx(math.log(2))
    # one of the 19 steps across is an edge of height 1 in every row, none of those down
    assert numbers["edge_mean"] == pytest.approx(1 / 19 / 2)
    assert numbers["horizontal_edge_share"] == 0.0
    assert numbers["entropy"] == pytest.approx(1 / 5)  # 1 bit of at most 5
    assert (numbers["left_ink"], numbers["right_ink"]) == pytest.approx((1.0, 0.0))
    assert (numbers["top_ink"], numbers["bottom_ink"]) == pytest.approx((0.5, 0.5))
    assert numbers["thumbnail_0_0"] == 0.0
    assert numbers["thumbnail_11_11"] == 1.0


def test_colourfulness_of_pure_red_by_its_equation() -> None:
    # rg = 1, yb = 1/2, no spread: M = 0.3 * sqrt(1 + 1/4)
    numbers = pixel_numbers(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert numbers["colourfulness"] == pytest.approx(0.3 * math.sqrt(1.25))
    assert numbers["saturation_mean"] == 1.0
    assert numbers["grey_pixel_share"] == 0.0


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (5000, 3), (300, 300)])
def test_any_size_gives_finite_numbers(size: tuple[int, int]) -> None:
    numbers = pixel_numbers(Image.new("RGB", size, (1, 2, 3)))
    assert set(numbers) == set(NAMES)
    assert all(math.isfinite(value) for value in numbers.values())


def test_numbers_hardly_depend_on_resolution() -> None:
    drawing = Image.new("RGB", (256, 256), "white")
    drawing.paste((200, 30, 30), (64, 64, 160, 192))
    large = drawing.resize((1024, 1024), Image.Resampling.NEAREST)
    small, big = pixel_numbers(drawing), pixel_numbers(large)
    for name in NAMES[3:]:
        assert big[name] == pytest.approx(small[name], abs=1e-5), name
    assert big["log_width"] - small["log_width"] == pytest.approx(math.log(4))


def test_vectors_hold_the_numbers_in_the_order_of_names() -> None:
    encoder = PixelsEncoder()
    vectors = encoder.encode([encoder.prepare(Image.new("RGB", (20, 10), "white"))] * 3)
    assert vectors.shape == (3, encoder.width)
    assert vectors.dtype == np.float32
    assert vectors[2, NAMES.index("white_share")] == 1.0
