"""From labels to a router: every member trained, calibrated on validation, ready to be stored.

The three train stages and the cross-fitting study all come through `fit_router`: base and independent training start
from fresh weights, incremental training (equation 7) from a trained router over fewer VLMs.

Source: arXiv 2606.08970, section 4.3.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arms_model.calibration import CalibrationSettings, fit_calibration
from arms_model.callbacks import Checkpoints, Console, EarlyStopping
from arms_model.network import ArmsNetwork
from arms_model.router import Router, RouterConfig, build_network, extended_network
from arms_model.training import Callback, TrainingData, TrainingSettings, predict, seed_everything, train


@dataclass(frozen=True, kw_only=True)
class FittedRouter:
    """A router and how it came about.

    Attributes:
        router: ready to be stored.
        histories: per member, one record per epoch.
    """

    router: Router
    histories: list[list[dict[str, float]]]


def fit_router(
    config: RouterConfig,
    data: TrainingData,
    *,
    training: TrainingSettings,
    calibration: CalibrationSettings,
    seed: int,
    start: Router | None = None,
    checkpoints: Path | None = None,
    what: str = "training",
) -> FittedRouter:
    """Train all members of a router and calibrate it on the validation rows.

    Args:
        config: what to build; `vlms` are the columns of `data.correct`.
        data: what to train on.
        training: how.
        calibration: how to calibrate; fitted on the validation rows' averaged logits only.
        seed: of the weights, dropout and orders; member m uses `1000 * seed + m`.
        start: incremental training: go on from this router, whose VLMs are some of `config.vlms`.
        checkpoints: folder for resumable checkpoints, one file per member; None keeps none.
        what: what is being trained, for progress lines.

    Returns:
        The router with its histories.

    Raises:
        ConfigError: a checkpoint from another configuration, or nothing that could move.
    """
    members, histories = [], []
    for number in range(config.num_members):
        seed_everything(1000 * seed + number)
        network = _fresh(config, data) if start is None else _extended(config, start, number, data)
        callbacks: list[Callback] = [Console(f"{what}, member {number + 1}/{config.num_members}")]
        if training.patience is not None:
            callbacks.append(EarlyStopping(training.patience))
        if checkpoints is not None:
            fingerprint = run_fingerprint(config, data, training=training, seed=1000 * seed + number, start=start)
            path = checkpoints / f"{fingerprint['digest'][:16]}.safetensors"
            callbacks.append(Checkpoints(path, fingerprint=fingerprint, every_s=training.checkpoint_every_s))
        for source in (data.question, data.picture):
            for module in source.modules():
                module.train()  # encoders are built for evaluation; they learn in one mode from the first step on
        histories.append(train(network, data, settings=training, seed=1000 * seed + number, callbacks=callbacks))
        members.append(network)
    logits = mean_logits(members, data, data.validation)
    fitted = fit_calibration(
        logits.numpy().astype(np.float64), data.correct[data.validation].numpy(), settings=calibration
    )
    with torch.no_grad():
        profile_vectors = data.profiles.rows(torch.arange(len(config.vlms))).detach().clone()
    modules = _learnt_encoders(config, data) if start is None else start.encoder_modules
    router = Router(
        config=config,
        members=members,
        profile_vectors=profile_vectors,
        encoder_modules=modules,
        calibration=fitted,
    )
    return FittedRouter(router=router, histories=histories)


def mean_logits(members: Sequence[ArmsNetwork], data: TrainingData, rows: Tensor) -> Tensor:
    """Logits (R, K) of queries `rows`, averaged over the members."""
    return torch.stack([predict(member, data, rows) for member in members]).mean(0)


def run_fingerprint(
    config: RouterConfig, data: TrainingData, *, training: TrainingSettings, seed: int, start: Router | None = None
) -> dict[str, Any]:
    """What a training run is made of, by name, and a digest of it all; a checkpoint is good for this alone.

    Returns:
        A flat mapping with the router's and the training's settings, the seed, the sha256 of the data and of the
        weights that are gone on from, and `digest`.
    """
    named: dict[str, Any] = {f"router.{name}": value for name, value in asdict(config).items()}
    named |= {f"training.{name}": value for name, value in asdict(training).items() if name != "checkpoint_every_s"}
    named |= {"seed": seed, "data": _data_digest(data), "start": None if start is None else _weights_digest(start)}
    plain = {name: repr(value) for name, value in sorted(named.items())}
    return {**plain, "digest": hashlib.sha256(repr(plain).encode()).hexdigest()}


def _learnt_encoders(config: RouterConfig, data: TrainingData) -> dict[str, nn.Module]:
    """The modules that learnt in the loop by their encoders' names; both stand in the order of the encoders."""
    encoders = (*config.question_encoders, *config.picture_encoders)
    names = [name for name in encoders if name in config.trainable_encoders]
    modules = [module for source in (data.question, data.picture) for module in source.modules()]
    return dict(zip(names, modules, strict=True))


def _fresh(config: RouterConfig, data: TrainingData) -> ArmsNetwork:
    network = build_network(config)
    if config.network.standardise:
        with torch.no_grad():
            network.fit_inputs(data.question.rows(data.train), data.picture.rows(data.train))
    _start_new_columns(network, data, torch.arange(len(config.vlms)))
    return network


def _extended(config: RouterConfig, start: Router, number: int, data: TrainingData) -> ArmsNetwork:
    network = extended_network(start.members[number], config, start.config.vlms)
    added = [column for column, vlm in enumerate(config.vlms) if vlm not in start.config.vlms]
    _start_new_columns(network, data, torch.tensor(added, dtype=torch.long))
    return network


def _start_new_columns(network: ArmsNetwork, data: TrainingData, columns: Tensor) -> None:
    """Biases start at the log-odds of the training means; a VLM without training labels starts at the others' mean."""
    correct = data.correct[data.train]
    means = torch.nanmean(correct, 0)
    overall = torch.nanmean(correct)
    network.head.start_at(torch.where(torch.isnan(means), overall, means)[columns], columns)


def _weights_digest(router: Router) -> str:
    digest = hashlib.sha256()
    for module in (*router.members, *router.encoder_modules.values()):
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _data_digest(data: TrainingData) -> str:
    digest = hashlib.sha256()
    for rows in (data.correct, data.train, data.validation):
        digest.update(repr(tuple(rows.shape)).encode())
        digest.update(np.ascontiguousarray(rows.numpy()).tobytes())
    return digest.hexdigest()
