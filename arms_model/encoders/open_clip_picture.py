"""Picture to vector with the picture tower of any CLIP model that open_clip knows.

Preset `paper` uses ViT-B-32; the vector is the picture embedding after CLIP's projection, not normalised (512 wide).
Preparing is the model's own (resize, centre crop, its mean and deviation). Only the picture tower is kept in memory.
Source: Radford et al., arXiv 2103.00020; open_clip.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from arms_model.encoders.identity import identity_of
from arms_model.encoders.protocol import Modality
from arms_model.encoders.weights import weights_sha256
from arms_model.errors import ConfigError
from arms_model.settings import nearest

_VERSION = 1


class OpenClipPictureEncoder:
    """The picture tower of a CLIP model."""

    modality: Modality = "picture"

    def __init__(self, *, name: str, weights: str, seed: int = 0) -> None:
        """Load the model.

        Args:
            name: a name open_clip knows (`ViT-B-32`), or `local-dir:<folder>` or `hf-hub:<repository>`.
            weights: a pretrained tag, a local file, or `random`; `pretrained` where the name is a folder or repository.
            seed: seed of random weights.

        Raises:
            ConfigError: the model or its weights are unknown or cannot be reached.
        """
        tower = _load(name, weights, seed).visual
        self.module: torch.nn.Module = tower.eval()
        settings = PreprocessCfg(**tower.preprocess_cfg)
        self._transform = image_transform_v2(settings, is_train=False)
        with torch.inference_mode():
            self.width = int(tower(torch.zeros(1, 3, *_height_and_width(settings.size))).shape[1])
        self.identity = identity_of(
            "open_clip",
            version=_VERSION,
            name=name,
            weights=weights_sha256(tower),
            preparing={key: value for key, value in tower.preprocess_cfg.items() if key != "size"},
            size=_height_and_width(settings.size),
        )

    def prepare(self, item: Image.Image) -> torch.Tensor:
        """The picture as the model takes it, (3, height, width) float32."""
        prepared: torch.Tensor = self._transform(item)
        return prepared

    def encode(self, prepared: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Vectors without gradient, (B, width) float32."""
        with torch.inference_mode():
            return self.forward(prepared).cpu().numpy()

    def forward(self, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
        """Vectors with gradient, (B, width) float32."""
        device = next(self.module.parameters()).device
        vectors: torch.Tensor = self.module(torch.stack(list(prepared)).to(device))  # (B, width)
        return vectors.float()


def _load(name: str, weights: str, seed: int) -> Any:
    """The whole CLIP model."""
    own_weights = name.startswith(("local-dir:", "hf-hub:"))
    if own_weights and weights not in ("pretrained", "random"):
        raise ConfigError(
            f"weights is '{weights}', but model '{name}' brings its own: expected 'pretrained' or 'random'."
        )
    if not own_weights and name not in open_clip.list_models():
        raise ConfigError(f"picture encoder '{name}' is unknown to open_clip; {nearest(name, open_clip.list_models())}")
    is_random = weights == "random"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return open_clip.create_model(
                name,
                pretrained=None if is_random or own_weights else weights,
                load_weights=not is_random,
                require_pretrained=not is_random,
                pretrained_text=False,
            )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"picture encoder '{name}' with weights '{weights}' could not be loaded ({reason}); expected a model name "
            "and a pretrained tag of open_clip, a local file, or 'random'. Correct it; without a hub, give a file."
        ) from None


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
