"""A memory beside the networks: what labelled training queries nearest to a query say.

It speaks twice. First, residuals: for each training query, by how much each VLM's label differed from an expectation
that had not seen it. A new query's confidences are moved by the weighted mean of its neighbours' residuals:

    delta_k = sum_j w_j r_jk / (prior + sum_j w_j),   w_j = exp((s_j - 1) / temperature)

with s_j the mean of the cosines of question and picture, and sums over neighbours that VLM k was asked. The weights are
absolute: where all neighbours are far they vanish against the prior, and the networks are left alone. So near copies of
a known template are read off without spoiling unknown ones.

Second, labels: the same kernel, broader, gives each VLM's mean around the query, shrunk to its overall mean. The answer
is a weighted mean of the corrected confidences and of these local means; a network that sees differences where there
are none is held back by it.

All numbers are chosen on the training queries themselves, each corrected by other groups only, by the error that
decides a choice (`metrics.centred_error`): temperature and prior of the residuals first, then those of the labels.

Beyond the paper; off in preset `paper`.
"""

import dataclasses
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
        temperatures: of the residuals' similarity; the smaller, the nearer a neighbour must be.
        priors: weight of the expectation, in neighbours at similarity 1.
        label_temperatures: likewise of the labels' similarity.
        label_priors: weight of a VLM's overall mean in its local mean.
        network_weights: share of the networks beside the local means; 1 leaves the local means out.
    """

    temperatures: tuple[float, ...] = (0.02, 0.03, 0.05, 0.1, 0.2)
    priors: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    label_temperatures: tuple[float, ...] = (0.05, 0.1)
    label_priors: tuple[float, ...] = (0.3, 1.0, 3.0)
    network_weights: tuple[float, ...] = (1.0, 0.8, 0.65, 0.5)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if max(self.network_weights, default=2.0) > 1:
            raise ValueError(f"network_weights must lie in (0, 1], got {list(self.network_weights)}")
        for name in ("temperatures", "priors", "label_temperatures", "label_priors", "network_weights"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be numbers above 0, at least one, got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How far a neighbour counts.

    Attributes:
        temperature: see the module's text.
        prior: likewise.
    """

    temperature: float
    prior: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Keys, residuals and labels of M training queries; half precision, so that what is stored is what was measured.

    Attributes:
        keys: (M, D) float16, rows of length 1.
        residuals: (M, K) float16, label minus expectation; NaN where not asked.
        labels: (M, K) float16, 1, 0, or NaN where not asked.
        means: (K,) float32, each VLM's mean label.
        residual_kernel: of the residuals.
        label_kernel: of the labels.
        network_weight: share of the networks beside the local means.
    """

    keys: NDArray[np.float16]
    residuals: NDArray[np.float16]
    labels: NDArray[np.float16]
    means: NDArray[np.float32]
    residual_kernel: Kernel
    label_kernel: Kernel
    network_weight: float

    def described(self) -> dict[str, dict[str, float] | float]:
        """What was chosen, by name."""
        return {
            "residual_kernel": dataclasses.asdict(self.residual_kernel),
            "label_kernel": dataclasses.asdict(self.label_kernel),
            "network_weight": self.network_weight,
        }

    def corrected(self, confidences: NDArray[np.floating], keys: NDArray[np.float16]) -> NDArray[np.float32]:
        """Confidences (N, K) of queries with these keys (N, D), after residuals and local means.

        Returns:
            (N, K) float32 inside (0, 1).
        """
        asked, residuals = _split(self.residuals)
        known, labels = _split(self.labels)
        deltas, local = [torch.zeros(0, len(self.means))], [torch.zeros(0, len(self.means))]
        for block in _blocks(keys, self.keys):
            moved, weight = _sums(block, residuals, asked, self.residual_kernel.temperature)
            deltas.append(moved / (weight + self.residual_kernel.prior))
            right, count = _sums(block, labels, known, self.label_kernel.temperature)
            prior = self.label_kernel.prior
            local.append((right + prior * torch.from_numpy(self.means)) / (count + prior))
        moved_confidences = _clipped(confidences + torch.cat(deltas).numpy())
        return _clipped(_mixed(moved_confidences, torch.cat(local).numpy(), self.network_weight))


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
    """Keep residuals and labels, and choose how far they count.

    Args:
        keys: (M, D) of the training queries.
        expected: (M, K) confidences of networks that did not see the query's labels.
        correct: (M, K) in {0, 1, NaN}.
        groups: (M,) str; a query is corrected by queries of other groups only while choosing.
        settings: what to choose from.

    Returns:
        The memory, and the training queries' confidences (M, K) corrected by other groups: as honest as `expected`.
    """
    residuals, labels = np.asarray(correct - expected, dtype=np.float16), np.asarray(correct, dtype=np.float16)
    overall = np.float32(np.nanmean(correct))
    counts = (~np.isnan(correct)).sum(0)
    means = np.where(counts > 0, np.nansum(correct, axis=0) / np.maximum(counts, 1), overall).astype(np.float32)
    group = np.unique(groups, return_inverse=True)[1]

    choices: dict[tuple[Kernel, float], NDArray[np.float32]] = {}
    for temperature in settings.temperatures:
        moved, weight = _sums_of_others(keys, residuals, group, temperature)
        for prior in settings.priors:
            kernel = Kernel(temperature=temperature, prior=prior)
            choices[kernel, 1.0] = _clipped(expected + moved / (weight + prior))
    (residual_kernel, _), corrected = _best(choices, correct)

    choices = {}
    for temperature in settings.label_temperatures:
        right, count = _sums_of_others(keys, labels, group, temperature)
        for prior in settings.label_priors:
            local = (right + prior * means) / (count + prior)
            for network_weight in settings.network_weights:
                kernel = Kernel(temperature=temperature, prior=prior)
                choices[kernel, network_weight] = _clipped(_mixed(corrected, local, network_weight))
    (label_kernel, network_weight), corrected = _best(choices, correct)
    memory = Memory(
        keys=keys,
        residuals=residuals,
        labels=labels,
        means=means,
        residual_kernel=residual_kernel,
        label_kernel=label_kernel,
        network_weight=network_weight,
    )
    return memory, corrected


def joined_memory(old: Memory, new: Memory, *, old_columns: NDArray[np.int64]) -> Memory:
    """The memory of incremental training: old residuals and labels in their new columns, then the new ones.

    Args:
        old: of the router that was gone on from; how far it counts stays.
        new: over all K VLMs; columns of old VLMs that it has no label of keep the old mean.
        old_columns: (K_old,) where the old VLMs stand among the K.
    """
    means = new.means.copy()
    silent = np.isnan(new.labels[:, old_columns]).all(axis=0)
    means[old_columns[silent]] = old.means[silent]

    def joined(old_part: NDArray[np.float16], new_part: NDArray[np.float16]) -> NDArray[np.float16]:
        moved = np.full((len(old_part), new_part.shape[1]), np.nan, dtype=np.float16)
        moved[:, old_columns] = old_part
        return np.concatenate([moved, new_part])

    return dataclasses.replace(
        old,
        keys=np.concatenate([old.keys, new.keys]),
        residuals=joined(old.residuals, new.residuals),
        labels=joined(old.labels, new.labels),
        means=means,
    )


def _best(
    choices: dict[tuple[Kernel, float], NDArray[np.float32]], correct: NDArray[np.floating]
) -> tuple[tuple[Kernel, float], NDArray[np.float32]]:
    """The choice with the lowest centred error; of equal ones the first."""
    return min(choices.items(), key=lambda item: float(centred_error(item[1], correct).sum()))


def _sums_of_others(
    keys: NDArray[np.float16], values: NDArray[np.float16], group: NDArray[np.int64], temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each query's weighted sum of values and of weights over queries of other groups, (M, K) each."""
    asked, known = _split(values)
    sums = []
    for number, block in enumerate(_blocks(keys, keys)):
        start = number * _ROWS_AT_ONCE
        others = torch.from_numpy(group[start : start + len(block), None] != group)
        sums.append(_sums(block, known, asked, temperature, others))
    return torch.cat([part[0] for part in sums]).numpy(), torch.cat([part[1] for part in sums]).numpy()


def _mixed(
    confidences: NDArray[np.floating], local: NDArray[np.floating], network_weight: float
) -> NDArray[np.floating]:
    return network_weight * confidences + (1 - network_weight) * local


def _blocks(queries: NDArray[np.float16], keys: NDArray[np.float16]) -> list[Tensor]:
    """Similarities (rows of a block, M), a block at a time."""
    against = torch.from_numpy(keys.astype(np.float32)).T
    rows = torch.from_numpy(queries.astype(np.float32))
    return [part @ against for part in torch.split(rows, _ROWS_AT_ONCE) if len(part)]


def _split(pairs: NDArray[np.float16]) -> tuple[Tensor, Tensor]:
    """Which pairs were asked (M, K) as 0 and 1, and the values with 0 elsewhere."""
    values = torch.from_numpy(pairs.astype(np.float32))
    asked = ~torch.isnan(values)
    return asked.float(), torch.where(asked, values, torch.zeros_like(values))


def _sums(
    similarity: Tensor, values: Tensor, asked: Tensor, temperature: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted values and weights, (rows, K) each."""
    weights = torch.exp((similarity - 1) / temperature)
    if allowed is not None:
        weights = weights * allowed
    return weights @ values, weights @ asked


def _clipped(confidences: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(np.clip(confidences, EPSILON, 1 - EPSILON), dtype=np.float32)
