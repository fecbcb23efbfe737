import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from arms_model.encoders.open_clip_picture import OpenClipPictureEncoder
from arms_model.errors import ConfigError

NAME = "ViT-S-32-alt"  # the smallest that open_clip lists


@pytest.fixture(scope="module")
def encoder() -> OpenClipPictureEncoder:
    return OpenClipPictureEncoder(name=NAME, weights="random", seed=1)


@pytest.fixture
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (200, 90), (9, 9))]


def test_vectors_are_clips_picture_embedding_not_normalised(
    encoder: OpenClipPictureEncoder, pictures: list[Image.Image], tmp_path: object
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model, _, prepare = open_clip.create_model_and_transforms(NAME)
    path = f"{tmp_path}/clip.safetensors"
    save_file(model.state_dict(), path)
    loaded = OpenClipPictureEncoder(name=NAME, weights=path)
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([prepare(picture) for picture in pictures]), normalize=False)
    found = loaded.encode([loaded.prepare(picture) for picture in pictures])
    assert found.shape == (3, loaded.width)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.linalg.norm(found, axis=1), 1, atol=0.05)
    assert loaded.identity != encoder.identity


def test_random_weights_follow_their_seed_and_leave_torchs_own(encoder: OpenClipPictureEncoder) -> None:
    before = torch.random.get_rng_state()
    again = OpenClipPictureEncoder(name=NAME, weights="random", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.identity == encoder.identity
    assert OpenClipPictureEncoder(name=NAME, weights="random", seed=2).identity != encoder.identity


def test_gradient_reaches_every_parameter(encoder: OpenClipPictureEncoder, pictures: list[Image.Image]) -> None:
    vectors = encoder.forward([encoder.prepare(picture) for picture in pictures])
    assert vectors.dtype == torch.float32
    vectors.square().sum().backward()
    without = [name for name, parameter in encoder.module.named_parameters() if parameter.grad is None]
    encoder.module.zero_grad(set_to_none=True)
    assert not without


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        ("ViT-B-23", "random", "'ViT-B-23' is unknown to open_clip; did you mean 'ViT-B-32'?"),
        (NAME, "no-such-tag", "with weights 'no-such-tag' could not be loaded"),
        ("local-dir:/nowhere", "pretrained", "could not be loaded"),
        ("local-dir:/nowhere", "openai", "brings its own: expected 'pretrained' or 'random'"),
    ],
)
def test_unknown_model_or_weights_are_refused(name: str, weights: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        OpenClipPictureEncoder(name=name, weights=weights)
    assert text in str(raised.value)
