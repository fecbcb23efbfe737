"""One training loop for the base router, incremental and independent training (section 4.3).

The loop itself is short; what happens around it (console, history, early stopping, checkpoints) are callbacks in
`callbacks.py`. The loss is binary cross-entropy over labelled pairs; what is not asked is masked.

Source: arXiv 2606.08970, equations 1 and 7; section 5.1.4 for the paper's values.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arms_model.batches import Batch, Batching, epoch_batches, num_batches
from arms_model.errors import ConfigError, DataError
from arms_model.losses import contrast, load_balance, masked_bce, query_averaged_bce
from arms_model.network import ArmsNetwork
from arms_model.sources import Source

Group = Literal["question_encoder", "picture_encoder", "gate", "experts", "head"]
GROUPS: tuple[Group, ...] = ("question_encoder", "picture_encoder", "gate", "experts", "head")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. The defaults are the paper's (section 5.1.4); what it does not have is off.

    Attributes:
        epochs: passes over the training part, at most.
        batch_size: queries (`by_query`) or pairs (`by_pair`, the paper's) a step.
        batching: see `batches.py`.
        learning_rate: AdamW's.
        weight_decay: AdamW's, on all weights but what the head keeps per VLM.
        schedule: `constant`, or `one_cycle`: up in the first tenth of the steps, then down to 0 along a cosine.
        loss_average: `pairs` (the paper), or `queries`: each query counts the same however many VLMs answered it.
        contrast_weight: weight of the contrast loss (`losses.contrast`), which looks only at how VLMs differ on a
            query, as a choice does; cross-entropy alone mostly learns how hard a query is for all of them.
        vlm_learning_rate_factor: what the head keeps per VLM learns this many times faster: each of its rows is moved
            by one VLM's labels alone.
        vlm_vector_penalty: weight of the mean square of the learned vectors `e_k` of the VLMs that are being trained.
        balance_penalty: weight of the load-balancing loss.
        patience: stop after so many epochs without a better validation loss and keep the best epoch's weights; null
            trains all epochs and keeps the last.
        moving: groups of weights that train; a frozen encoder has none. Default: all.
        checkpoint_every_s: seconds between checkpoints.
    """

    epochs: int = 2
    batch_size: int = 64
    batching: Batching = "by_pair"
    learning_rate: float = 8e-5
    weight_decay: float = 1e-2
    schedule: Literal["constant", "one_cycle"] = "constant"
    loss_average: Literal["pairs", "queries"] = "pairs"
    contrast_weight: float = 0.0
    vlm_learning_rate_factor: float = 1.0
    vlm_vector_penalty: float = 0.0
    balance_penalty: float = 0.0
    patience: int | None = None
    moving: tuple[Group, ...] = GROUPS
    checkpoint_every_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "vlm_learning_rate_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "contrast_weight", "vlm_vector_penalty", "balance_penalty", "checkpoint_every_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, or null for no early stopping, got {self.patience}")
        if not self.moving:
            raise ValueError(f"moving must name at least one of {', '.join(GROUPS)}")
        if self.batching == "by_pair" and (self.loss_average == "queries" or self.contrast_weight):
            raise ValueError(
                "loss_average: queries and contrast_weight need batching: by_query; a batch of pairs has no whole query"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What is trained on.

    Attributes:
        question: source of question vectors, a row per query.
        picture: source of picture vectors, a row per query.
        profiles: source of profile vectors, a row per VLM.
        correct: (N, K) float32 labels; NaN where not asked (or held back).
        train: (M,) int64 rows to train on.
        validation: (V,) int64 rows for early stopping; may be empty without it.
        groups: (N,) str, near-copies share one; needed where rows are divided further (bagging, memory).
    """

    question: Source
    picture: Source
    profiles: Source
    correct: Tensor
    train: Tensor
    validation: Tensor
    groups: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        """Refuse a training part without labels."""
        if not len(self.train) or not bool((~torch.isnan(self.correct[self.train])).any()):
            raise DataError("no labelled pair to train on: look at the label tables, the split and the filter.")


@dataclass(kw_only=True)
class LoopState:
    """Where a training run stands; callbacks read it, the checkpoint callback also sets it.

    Attributes:
        modules: everything with weights, by name: `network`, and encoders that learn.
        optimiser: AdamW over the moving weights.
        epoch: number of the running epoch, from 0.
        step: batches of this epoch already done.
        steps_done: batches done in all.
        num_steps: batches in all epochs.
        loss_sum: sum over this epoch's batches so far.
        history: one record per finished epoch.
        best_loss: lowest validation loss so far.
        best: the weights of that epoch, by module and name; empty without early stopping.
        stop: set by a callback to end after this epoch.
    """

    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    num_steps: int
    epoch: int = 0
    step: int = 0
    steps_done: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    stop: bool = False

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers by `<module>.<name>`; the tensors themselves, not copies."""
        return {f"{part}.{name}": value for part, m in self.modules.items() for name, value in m.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy `weights`, named as by `weights()`, into the modules."""
        for part, module in self.modules.items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})


class Callback(Protocol):
    """The named moments of the loop."""

    def on_start(self, state: LoopState) -> None:
        """Before the first step; a checkpoint is restored here."""

    def on_step(self, state: LoopState) -> None:
        """After each step."""

    def on_epoch(self, state: LoopState) -> None:
        """After each epoch, its record being the last of `state.history`."""

    def on_end(self, state: LoopState) -> None:
        """After the last epoch."""


def train(
    network: ArmsNetwork,
    data: TrainingData,
    *,
    settings: TrainingSettings,
    seed: int,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Train `network` in place, and the encoders that learn.

    Args:
        network: the network.
        data: what to train on.
        settings: how.
        seed: of dropout and of the epochs' orders. Same seed, data and machine: same weights.
        callbacks: called in this order at each moment.

    Returns:
        One record per epoch: epoch, train_loss, validation_loss (NaN without validation rows), learning_rate.

    Raises:
        ConfigError: a moving group that has no weights.
    """
    seed_everything(seed)
    modules = _modules(network, data)
    optimiser = _optimiser(network, data, settings)
    batches = num_batches(data.correct, data.train, batching=settings.batching, batch_size=settings.batch_size)
    state = LoopState(modules=modules, optimiser=optimiser, num_steps=batches * settings.epochs)
    for callback in callbacks:
        callback.on_start(state)
    for module in modules.values():
        module.train()  # encoders are built for evaluation; all learn in one mode from the first step on
    while state.epoch < settings.epochs and not state.stop:
        for batch in _remaining(data, settings, seed, state):
            _set_learning_rate(state, settings)
            loss = batch_loss(network, data, batch, settings)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            state.step, state.steps_done, state.loss_sum = (
                state.step + 1,
                state.steps_done + 1,
                state.loss_sum + float(loss.detach()),
            )
            for callback in callbacks:
                callback.on_step(state)
        state.history.append(
            {
                "epoch": float(state.epoch + 1),
                "train_loss": state.loss_sum / max(state.step, 1),
                "validation_loss": validation_loss(network, data, modules),
                "learning_rate": optimiser.param_groups[0]["lr"],
            }
        )
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        for callback in callbacks:
            callback.on_epoch(state)
    for callback in callbacks:
        callback.on_end(state)
    for module in modules.values():
        module.eval()
    return state.history


def batch_loss(network: ArmsNetwork, data: TrainingData, batch: Batch, settings: TrainingSettings) -> Tensor:
    """The loss of one batch, with gradient: masked cross-entropy plus the penalties that are on."""
    fused = network.fuse(data.question.rows(batch.queries), data.picture.rows(batch.queries))
    if batch.vlms is None:
        correct = data.correct[batch.queries]
        logits = network.score(fused, data.profiles.rows(torch.arange(correct.shape[1])))
        loss = (masked_bce if settings.loss_average == "pairs" else query_averaged_bce)(logits, correct)
        if settings.contrast_weight:
            loss = loss + settings.contrast_weight * contrast(logits, correct)
    else:
        correct = data.correct[batch.queries, batch.vlms]
        loss = masked_bce(network.score_pairs(fused, data.profiles.rows(batch.vlms), batch.vlms), correct)
    if settings.balance_penalty:
        loss = loss + settings.balance_penalty * load_balance(fused.gate_weights)
    if settings.vlm_vector_penalty and network.head.vlm_vectors is not None:
        asked = (~torch.isnan(data.correct[data.train])).any(0)  # only VLMs that this run learns are shrunk
        loss = loss + settings.vlm_vector_penalty * network.head.vlm_vectors[asked].square().mean()
    return loss


@torch.inference_mode()
def predict(network: ArmsNetwork, data: TrainingData, rows: Tensor, *, batch_size: int = 256) -> Tensor:
    """Logits (R, K) of queries `rows` (R,), in evaluation mode."""
    for module in _modules(network, data).values():
        module.eval()
    profiles = data.profiles.rows(torch.arange(data.correct.shape[1]))
    parts = [
        network(data.question.rows(part), data.picture.rows(part), profiles) for part in torch.split(rows, batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, data.correct.shape[1])


def validation_loss(network: ArmsNetwork, data: TrainingData, modules: dict[str, nn.Module]) -> float:
    """Masked log loss on the validation rows, NaN without any label there; leaves the modules in training mode."""
    correct = data.correct[data.validation]
    loss = math.nan
    if bool((~torch.isnan(correct)).any()):
        loss = float(masked_bce(predict(network, data, data.validation), correct))
    for module in modules.values():
        module.train()
    return loss


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that still draw from the global generator
    torch.manual_seed(seed)


def _modules(network: ArmsNetwork, data: TrainingData) -> dict[str, nn.Module]:
    return {"network": network, **dict(_encoders(data))}


def _encoders(data: TrainingData) -> list[tuple[str, nn.Module]]:
    """The encoders that run in the loop; the profiles' is the question's own."""
    found: list[tuple[str, nn.Module]] = []
    for name, source in (("question_encoder", data.question), ("picture_encoder", data.picture)):
        modules = source.modules()
        if len(modules) > 1:
            raise ConfigError(f"{name}: at most one encoder can learn in the loop, got {len(modules)}.")
        found += [(name, module) for module in modules]
    return found


def _optimiser(network: ArmsNetwork, data: TrainingData, settings: TrainingSettings) -> torch.optim.Optimizer:
    encoders = dict(_encoders(data))
    groups: dict[str, list[nn.Parameter]] = {name: list(encoders[name].parameters()) for name in encoders}
    groups |= {"gate": list(network.gate.parameters()), "experts": list(network.experts.parameters())}
    groups["head"] = list(network.head.parameters())
    if network.learned_profiles is not None:
        groups["head"].append(network.learned_profiles)
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(name in settings.moving)
    moving = [p for name, parameters in groups.items() if name in settings.moving for p in parameters]
    if not moving:
        raise ConfigError(
            f"moving: none of {', '.join(settings.moving)} has weights that could learn; add gate, experts or head."
        )
    per_vlm = {id(p) for p in network.per_vlm_parameters()}
    return torch.optim.AdamW(
        [
            {"params": [p for p in moving if id(p) not in per_vlm], "weight_decay": settings.weight_decay},
            {"params": [p for p in moving if id(p) in per_vlm], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )


def _remaining(data: TrainingData, settings: TrainingSettings, seed: int, state: LoopState) -> list[Batch]:
    """This epoch's batches that are still to be done (all but where a checkpoint was restored)."""
    epoch_seed = seed * 1_000_003 + state.epoch
    batches = epoch_batches(
        data.correct, data.train, batching=settings.batching, batch_size=settings.batch_size, seed=epoch_seed
    )
    return list(batches)[state.step :]


def _set_learning_rate(state: LoopState, settings: TrainingSettings) -> None:
    share = 1.0
    if settings.schedule == "one_cycle":
        done = state.steps_done / max(state.num_steps, 1)
        share = min(1.0, 0.04 + 0.96 * done / 0.1) if done < 0.1 else 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))
    shared, per_vlm = state.optimiser.param_groups
    shared["lr"] = settings.learning_rate * share
    per_vlm["lr"] = settings.learning_rate * settings.vlm_learning_rate_factor * share
