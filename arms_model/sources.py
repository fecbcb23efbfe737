"""Where the training loop gets vectors from: kept ones (frozen encoders), or an encoder that learns in the loop.

The loop asks for rows by their numbers and does not know which of the two it got.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from arms_model.encoders.protocol import TrainableEncoder


class Source(Protocol):
    """Rows of vectors.

    Attributes:
        width: D of a row.
    """

    @property
    def width(self) -> int: ...  # noqa: D102

    def rows(self, index: Tensor) -> Tensor:
        """Rows `index` (B,) int64 -> (B, width) float32, with gradient where an encoder learns."""
        ...

    def __len__(self) -> int: ...

    def modules(self) -> list[nn.Module]:
        """The encoders' modules that learn; empty for kept vectors."""
        ...


class KeptVectors:
    """Vectors of a frozen encoder, (N, D) float32."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors
        self.width = vectors.shape[1]

    def __len__(self) -> int:
        return len(self._vectors)

    def rows(self, index: Tensor) -> Tensor:
        """See `Source`."""
        return self._vectors[index]

    def modules(self) -> list[nn.Module]:
        """None."""
        return []


class EncodedInLoop:
    """Items that a trainable encoder encodes whenever they are asked for.

    **Decision**: batch norm keeps the means and deviations it came with, also while it trains: else a query's vector
    would depend on the other rows of its batch, and the encoder would score with other numbers than it learnt with.

    Args:
        encoder: the encoder; its module's mode (training or evaluation) is the loop's business.
        items: what `encoder.prepare` takes, by row; or `load`ed first, e.g. a picture from its path.
        load: from an item to what `encoder.prepare` takes; None where it already is that.
    """

    def __init__(
        self, encoder: TrainableEncoder, items: Sequence[Any], *, load: Callable[[Any], Any] | None = None
    ) -> None:
        self._encoder = encoder
        self._items = items
        self._load = load
        self.width = encoder.width

    def __len__(self) -> int:
        return len(self._items)

    def rows(self, index: Tensor) -> Tensor:
        """See `Source`; a row asked for twice in one call is encoded once."""
        if not len(index):
            return torch.zeros(0, self.width)
        unique, back = torch.unique(index, return_inverse=True)
        items = [self._items[i] for i in unique.tolist()]
        loaded = items if self._load is None else [self._load(item) for item in items]
        self._keep_batch_norm_statistics()
        return self._encoder.forward([self._encoder.prepare(item) for item in loaded])[back]

    def modules(self) -> list[nn.Module]:
        """The encoder's module."""
        return [self._encoder.module]

    def _keep_batch_norm_statistics(self) -> None:
        for layer in self._encoder.module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


class Joined:
    """Several sources side by side: rows are concatenated, (B, D_1 + D_2 + ...)."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self.width = sum(part.width for part in parts)

    def __len__(self) -> int:
        return len(self._parts[0])

    def rows(self, index: Tensor) -> Tensor:
        """See `Source`."""
        return torch.cat([part.rows(index) for part in self._parts], dim=-1)

    def modules(self) -> list[nn.Module]:
        """Those of all parts."""
        return [module for part in self._parts for module in part.modules()]
