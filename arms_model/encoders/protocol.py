"""What an encoder is: question texts or pictures in, one vector each out.

An encoder works in two steps, so that slow preparing (decoding, resizing, tokenising) runs in threads while the
network is busy: `prepare` takes one item, `encode` a list of prepared ones. Whoever stores vectors keys them by
`identity`. An encoder must not know where its items come from or where its vectors go.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Modality = Literal["question", "picture"]


class Encoder(Protocol):
    """Question text or picture in, one vector out.

    Attributes:
        identity: everything that decides the vectors, as JSON: kind, version, the weights' sha256, parameters.
        width: numbers per vector.
        modality: whether items are question texts (str) or pictures (decoded PIL pictures in mode RGB).
    """

    @property
    def identity(self) -> str: ...  # noqa: D102

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def modality(self) -> Modality: ...  # noqa: D102

    def prepare(self, item: Any) -> Any:
        """One item as `encode` takes it; safe to call from several threads at once.

        Args:
            item: a question text, or a decoded RGB picture.

        Returns:
            Something small: it waits in memory for its batch.
        """
        ...

    def encode(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """The vectors of prepared items, without gradient; safe to call from several threads at once.

        Args:
            prepared: what `prepare` gave, B of them.

        Returns:
            Vectors, (B, width) float32. An item's vector does not depend on the others, up to float rounding.
        """
        ...


class TrainableEncoder(Encoder, Protocol):
    """An encoder whose weights a training loop may move.

    Attributes:
        module: the weights; in evaluation mode until the loop says otherwise.
    """

    @property
    def module(self) -> "torch.nn.Module": ...  # noqa: D102

    def forward(self, prepared: Sequence[Any]) -> "torch.Tensor":
        """Like `encode`, with gradient, on the module's device.

        Args:
            prepared: what `prepare` gave, B of them.

        Returns:
            Vectors, (B, width) float32.
        """
        ...
