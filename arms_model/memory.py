"""A memory beside the networks: what the labelled training queries nearest to a query say that the networks missed.

The networks give every pair an expectation; the memory keeps, for each training query, by how much each VLM's label
differed from an expectation that had not seen it (a residual). A new query's confidences are moved by the weighted mean
of its neighbours' residuals:

    delta_k = sum_j w_j r_jk / (prior + sum_j w_j),   w_j = exp((s_j - 1) / temperature)

with s_j the mean of the cosines of question and picture, and the sums over neighbours that VLM k was asked. The weights
are absolute: where all neighbours are far they vanish against the prior, and the networks are left alone. So a memory
sharpens known templates without spoiling unknown ones. Temperature and prior are chosen on the training queries
themselves, each corrected by other groups' residuals only, by the error that decides a choice.

Beyond the paper; off in preset `paper`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arms_model.metrics import centred_error
from arms_model.network import ArmsNetwork

EPSILON = 1e-4  # confidences stay inside (EPSILON, 1 - EPSILON), so that they have a logit
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What is chosen from.

    Attributes:
        temperatures: of the similarity; the smaller, the nearer a neighbour must be.
        priors: weight of the expectation, in neighbours at similarity 1.
    """

    temperatures: tuple[float, ...] = (0.02, 0.03, 0.05, 0.1, 0.2)
    priors: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("temperatures", "priors"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be numbers above 0, at least one, got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Keys and residuals of M training queries; half precision, so that what is stored is what was measured.

    Attributes:
        keys: (M, D) float16, rows of length 1.
        residuals: (M, K) float16, label minus expectation; NaN where not asked.
        temperature: see the module's text.
        prior: likewise.
    """

    keys: NDArray[np.float16]
    residuals: NDArray[np.float16]
    temperature: float
    prior: float

    def described(self) -> dict[str, float]:
        """What was chosen: temperature and prior."""
        return {"temperature": self.temperature, "prior": self.prior}

    def corrected(self, confidences: NDArray[np.floating], keys: NDArray[np.float16]) -> NDArray[np.float32]:
        """Confidences (N, K) of queries with these keys (N, D), moved by their neighbours' residuals.

        Returns:
            (N, K) float32 inside (0, 1).
        """
        similarity = _blocks(keys, self.keys)
        asked, residuals = _split(self.residuals)
        parts = [_delta(block, residuals, asked, self.temperature, self.prior) for block in similarity]
        delta = torch.cat([torch.zeros(0, asked.shape[1]), *parts]).numpy()
        return _clipped(confidences + delta)


def memory_keys(network: ArmsNetwork, question: Tensor, picture: Tensor) -> NDArray[np.float16]:
    """The keys of queries: standardised question and picture vectors, each of length 1, side by side over sqrt(2).

    Args:
        network: a member that standardises its inputs.
        question: (N, D_q).
        picture: (N, D_v).

    Returns:
        (N, D) float16; the product of two keys is the mean of both cosines.
    """
    if network.question_scaler is None or network.picture_scaler is None:
        raise ValueError("a memory needs network.standardise: true")
    with torch.no_grad():
        parts = [network.question_scaler(question), network.picture_scaler(picture)]
        unit = [torch.nn.functional.normalize(part, dim=-1) for part in parts]
        return np.asarray((torch.cat(unit, dim=-1) / np.sqrt(2)).numpy(), dtype=np.float16)


def fit_memory(
    keys: NDArray[np.float16],
    expected: NDArray[np.floating],
    correct: NDArray[np.floating],
    groups: NDArray[np.str_],
    *,
    settings: MemorySettings,
) -> tuple[Memory, NDArray[np.float32]]:
    """Keep the residuals and choose temperature and prior.

    Args:
        keys: (M, D) of the training queries.
        expected: (M, K) confidences of networks that did not see the query's labels.
        correct: (M, K) in {0, 1, NaN}.
        groups: (M,) str; a query is corrected by queries of other groups only while choosing.
        settings: what to choose from.

    Returns:
        The memory, and the training queries' confidences (M, K) corrected by other groups: as honest as `expected`.
    """
    residuals = np.asarray(correct - expected, dtype=np.float16)
    asked, values = _split(residuals)
    group = np.unique(groups, return_inverse=True)[1]
    best: tuple[float, float, float, NDArray[np.float32]] | None = None
    for temperature in settings.temperatures:
        sums = [
            _sums(block, values, asked, temperature, torch.from_numpy(group[start : start + len(block), None] != group))
            for start, block in zip(range(0, len(keys), _ROWS_AT_ONCE), _blocks(keys, keys), strict=True)
        ]
        moved, weight = torch.cat([part[0] for part in sums]).numpy(), torch.cat([part[1] for part in sums]).numpy()
        for prior in settings.priors:
            corrected = _clipped(expected + moved / (weight + prior))
            error = float(centred_error(corrected, correct).sum())
            if best is None or error < best[0]:
                best = (error, temperature, prior, corrected)
    assert best is not None  # noqa: S101 - settings hold at least one temperature and one prior
    return Memory(keys=keys, residuals=residuals, temperature=best[1], prior=best[2]), best[3]


def joined_memory(old: Memory, new: Memory, *, old_columns: NDArray[np.int64]) -> Memory:
    """The memory of incremental training: old residuals in their new columns, then the new ones.

    Args:
        old: of the router that was gone on from; its temperature and prior stay.
        new: over all K VLMs.
        old_columns: (K_old,) where the old VLMs stand among the K.
    """
    moved = np.full((len(old.keys), new.residuals.shape[1]), np.nan, dtype=np.float16)
    moved[:, old_columns] = old.residuals
    return Memory(
        keys=np.concatenate([old.keys, new.keys]),
        residuals=np.concatenate([moved, new.residuals]),
        temperature=old.temperature,
        prior=old.prior,
    )


def _blocks(queries: NDArray[np.float16], keys: NDArray[np.float16]) -> list[Tensor]:
    """Similarities (rows of a block, M), a block at a time."""
    against = torch.from_numpy(keys.astype(np.float32)).T
    rows = torch.from_numpy(queries.astype(np.float32))
    return [part @ against for part in torch.split(rows, _ROWS_AT_ONCE) if len(part)]


def _split(residuals: NDArray[np.float16]) -> tuple[Tensor, Tensor]:
    """Which pairs were asked (M, K) as 0 and 1, and the residuals with 0 elsewhere."""
    values = torch.from_numpy(residuals.astype(np.float32))
    asked = ~torch.isnan(values)
    return asked.float(), torch.where(asked, values, torch.zeros_like(values))


def _sums(
    similarity: Tensor, residuals: Tensor, asked: Tensor, temperature: float, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted residuals and weights, (rows, K) each."""
    weights = torch.exp((similarity - 1) / temperature)
    if allowed is not None:
        weights = weights * allowed
    return weights @ residuals, weights @ asked


def _delta(similarity: Tensor, residuals: Tensor, asked: Tensor, temperature: float, prior: float) -> Tensor:
    moved, weight = _sums(similarity, residuals, asked, temperature, None)
    return moved / (weight + prior)


def _clipped(confidences: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(np.clip(confidences, EPSILON, 1 - EPSILON), dtype=np.float32)
