"""A scale and a bias per VLM before the sigmoid, so that a confidence of 0.7 is right seven times in ten.

The calibrated logit of VLM k is `scale_k * z_ik + bias_k`. `temperature` learns the scales only, `platt` both. Fitted
on validation labels alone, by minimising the log loss: first one scale and one bias for the whole pool, then each VLM's
own, shrunk to the pool's by a normal prior. A VLM with few validation labels takes the pool's. Beyond the paper.

A scale is positive always, so calibration never turns a VLM's order of queries round; it does move VLMs against each
other, which can change the choice.
"""

import dataclasses
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from arms_model.errors import DataError

_POOL_SPREAD = 2.0  # of the pool's log scale and bias around 0: keeps them finite when all labels are the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How to calibrate.

    Attributes:
        kind: `none` leaves logits as they are, `temperature` learns scales, `platt` scales and biases.
        min_labels: a VLM with fewer validation labels takes the pool's scale and bias.
        spread: standard deviation of a VLM's log scale and bias around the pool's; smaller shrinks more.
    """

    kind: Literal["none", "temperature", "platt"] = "platt"
    min_labels: int = 50
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.min_labels < 1:
            raise ValueError(f"min_labels must be at least 1, got {self.min_labels}")
        if not self.spread > 0:
            raise ValueError(f"spread must be above 0, got {self.spread}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted values; plain arrays, so that they are stored beside the router's weights.

    Attributes:
        scale: (K,) float64, above 0.
        bias: (K,) float64.
        is_own: (K,) bool, False where a VLM takes the pool's values.
        log_loss_before: mean over the validation labels, nats per pair; NaN without labels.
        log_loss_after: the same after calibration (in sample).
    """

    scale: NDArray[np.float64]
    bias: NDArray[np.float64]
    is_own: NDArray[np.bool_]
    log_loss_before: float
    log_loss_after: float

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrated logits (N, K).

        Raises:
            DataError: the logits are of another number of VLMs.
        """
        if logits.shape[-1] != len(self.scale):
            raise DataError(f"calibration of {len(self.scale)} VLMs got logits of {logits.shape[-1]}; fit it again.")
        return np.asarray(logits, dtype=np.float64) * self.scale + self.bias


def fit_calibration(
    logits: NDArray[np.floating],
    correct: NDArray[np.floating],
    *,
    settings: CalibrationSettings,
) -> Calibration:
    """Fit on validation labels.

    Args:
        logits: (N, K) of the validation queries, before the sigmoid.
        correct: (N, K) in {0, 1, NaN}.
        settings: what to fit.

    Returns:
        Scales and biases with the log loss before and after. Without any label: scale 1, bias 0.

    Raises:
        DataError: shapes differ, or a labelled pair's logit is not finite.
    """
    asked = ~np.isnan(correct)
    if logits.shape != correct.shape or not np.isfinite(logits[asked]).all():
        raise DataError(
            f"calibration needs finite logits for all labels in one shape (N, K); got logits {logits.shape}, labels "
            f"{correct.shape}, {int((~np.isfinite(logits[asked])).sum()) if logits.shape == correct.shape else '?'} "
            "not finite; look at the training loss first."
        )
    z, y, mask = (torch.from_numpy(np.where(asked, part, 0.0).astype(np.float64)) for part in (logits, correct, asked))
    num_vlms = z.shape[1]
    theta = torch.zeros(2, num_vlms, dtype=torch.float64)  # log scale, bias
    is_own = np.zeros(num_vlms, dtype=bool)
    if settings.kind != "none" and asked.any():
        free = torch.tensor([[1.0], [float(settings.kind == "platt")]], dtype=torch.float64)
        pool = _minimise(z, y, mask, centre=torch.zeros(2, 1, dtype=torch.float64), free=free, spread=_POOL_SPREAD)
        own = _minimise(z, y, mask, centre=pool.expand(2, num_vlms), free=free, spread=settings.spread)
        is_own = asked.sum(axis=0) >= settings.min_labels
        theta = torch.where(torch.from_numpy(is_own), own, pool)
    return Calibration(
        scale=theta[0].exp().numpy(),
        bias=theta[1].numpy().copy(),
        is_own=is_own,
        log_loss_before=_mean_loss(z, y, mask, torch.zeros_like(theta)),
        log_loss_after=_mean_loss(z, y, mask, theta),
    )


def _minimise(
    z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, *, centre: torch.Tensor, free: torch.Tensor, spread: float
) -> torch.Tensor:
    """Log scale and bias, (2, K) or (2, 1) as `centre`, that minimise the log loss with a normal prior at `centre`."""
    shift = torch.zeros_like(centre).contiguous().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [shift], max_iter=300, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = _sum_loss(z, y, mask, centre + shift * free) + (shift**2).sum() / (2 * spread**2)
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return (centre + shift * free).detach()


def _sum_loss(z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    pairs = binary_cross_entropy_with_logits(z * theta[0].exp() + theta[1], y, reduction="none")
    return (pairs * mask).sum()


def _mean_loss(z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, theta: torch.Tensor) -> float:
    count = int(mask.sum())
    return float(_sum_loss(z, y, mask, theta)) / count if count else float("nan")
