"""From labels to a router: every member trained, calibrated on validation, ready to be stored.

The three train stages and the cross-fitting study all come through `fit_router`: base and independent training start
from fresh weights, incremental training (equation 7) from a trained router over fewer VLMs.

Source: arXiv 2606.08970, section 4.3.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arms_model.calibration import Calibration, CalibrationSettings, fit_calibration
from arms_model.callbacks import Checkpoints, Console, EarlyStopping
from arms_model.errors import ConfigError
from arms_model.folds import inner_folds
from arms_model.memory import MemorySettings, fit_memory, joined_memory, memory_keys
from arms_model.network import ArmsNetwork
from arms_model.router import Router, RouterConfig, build_network, extended_network, logit, sigmoid
from arms_model.sources import Source
from arms_model.training import Callback, TrainingData, TrainingSettings, predict, seed_everything, train


@dataclass(frozen=True, kw_only=True)
class FittedRouter:
    """A router and how it came about.

    Attributes:
        router: ready to be stored.
        histories: per member, one record per epoch.
        rows: (R,) int64 rows whose labels were scored by networks that had not seen them: the validation rows; with
            bagging all training and validation rows.
        logits: (R, K) float64 of those rows, memory included, before calibration.
    """

    router: Router
    histories: list[list[dict[str, float]]]
    rows: NDArray[np.int64]
    logits: NDArray[np.float64]


def fit_router(
    config: RouterConfig,
    data: TrainingData,
    *,
    training: TrainingSettings,
    calibration: CalibrationSettings,
    seed: int,
    memory: MemorySettings | None = None,
    start: Router | None = None,
    checkpoints: Path | None = None,
    what: str = "training",
    callbacks: Sequence[Callable[[int], Callback]] = (),
) -> FittedRouter:
    """Train all members of a router, give it its memory, and calibrate it on labels its networks had not seen.

    With `config.bagging` every member trains on all but one inner fold of the training and validation rows and stops
    early on that one (beyond the paper); else all train on the training rows and stop on the validation rows.

    Args:
        config: what to build; `vlms` are the columns of `data.correct`.
        data: what to train on.
        training: how.
        calibration: how to calibrate.
        seed: of the weights, dropout and orders; member m uses `1000 * seed + m`.
        memory: keep a memory of the training queries; needs `config.bagging`.
        start: incremental training: go on from this router, whose VLMs are some of `config.vlms`.
        checkpoints: folder for resumable checkpoints, one file per member; the caller removes it once the router is
            stored. None keeps none.
        what: what is being trained, for progress lines.
        callbacks: makers of further callbacks, called for each member with its number, from 0.

    Returns:
        The router, its histories, and the logits it was calibrated on.

    Raises:
        ConfigError: a checkpoint from another configuration, nothing that could move, or a memory without bagging.
    """
    if memory is not None and not config.bagging:
        raise ConfigError("memory needs bagging: true: its residuals come from members that did not see the query.")
    parts = _member_data(data, config.num_members) if config.bagging else [data] * config.num_members
    members, histories = [], []
    for number, part in enumerate(parts):
        member_seed = 1000 * seed + number
        seed_everything(member_seed)
        network = _fresh(config, part) if start is None else _extended(config, start, number, part)
        hooks: list[Callback] = [] if training.patience is None else [EarlyStopping(training.patience)]
        if checkpoints is not None:
            fingerprint = run_fingerprint(config, part, training=training, seed=member_seed, start=start)
            path = checkpoints / f"member{number}.safetensors"
            hooks.append(Checkpoints(path, fingerprint=fingerprint, every_s=training.checkpoint_every_s))
        hooks += [make(number) for make in callbacks]
        hooks.append(Console(f"{what}, member {number + 1}/{config.num_members}"))
        histories.append(train(network, part, settings=training, seed=member_seed, callbacks=hooks))
        members.append(network)
    rows, logits = _honest_logits(members, parts, bagging=config.bagging)
    correct = data.correct[rows].numpy()
    kept = None
    if memory is not None:
        keys = memory_keys(members[0], data.question.rows(rows), data.picture.rows(rows))
        groups = _groups(data)[rows.numpy()]
        kept, confidences = fit_memory(keys, sigmoid(logits), correct, groups, settings=memory)
        logits = logit(confidences)
        if start is not None and start.memory is not None:
            kept = joined_memory(start.memory, kept, old_columns=_old_columns(config, start))
    fitted = fit_calibration(logits, correct, settings=calibration)
    if start is not None:
        fitted = _keep_unlabelled(fitted, start, config, correct)
    with torch.no_grad():
        profile_vectors = data.profiles.rows(torch.arange(len(config.vlms))).detach().clone()
    router = Router(
        config=config,
        members=members,
        profile_vectors=profile_vectors,
        encoder_modules=_learnt_encoders(config, data) if start is None else start.encoder_modules,
        memory=kept,
        calibration=fitted,
    )
    return FittedRouter(router=router, histories=histories, rows=rows.numpy(), logits=logits)


def _member_data(data: TrainingData, num_members: int) -> list[TrainingData]:
    """Per member, all rows but one inner fold to train on, and that fold to stop early on."""
    rows = torch.cat([data.train, data.validation]).sort().values
    fold = torch.from_numpy(inner_folds(_groups(data)[rows.numpy()], salt="members", num_folds=num_members))
    return [
        dataclasses.replace(data, train=rows[fold != number], validation=rows[fold == number])
        for number in range(num_members)
    ]


def _groups(data: TrainingData) -> NDArray[np.str_]:
    if data.groups is None:
        raise ConfigError("bagging needs the queries' groups: near-copies must not stand on both sides of a fold.")
    return data.groups


def _honest_logits(
    members: Sequence[ArmsNetwork], parts: Sequence[TrainingData], *, bagging: bool
) -> tuple[Tensor, NDArray[np.float64]]:
    """Rows, sorted, and their logits under networks that had not seen them.

    Those are all members on the validation rows; with bagging, for each row the member that held it out.
    """
    if not bagging:
        rows = parts[0].validation
        return rows, torch.stack([predict(member, parts[0], rows) for member in members]).mean(0).double().numpy()
    rows = torch.cat([part.validation for part in parts])
    logits = torch.cat([predict(member, part, part.validation) for member, part in zip(members, parts, strict=True)])
    order = rows.argsort()
    return rows[order], logits[order].double().numpy()


def _old_columns(config: RouterConfig, start: Router) -> NDArray[np.int64]:
    return np.asarray([config.vlms.index(vlm) for vlm in start.config.vlms], dtype=np.int64)


def _keep_unlabelled(
    fitted: Calibration, start: Router, config: RouterConfig, correct: NDArray[np.float32]
) -> Calibration:
    """Old VLMs without labels in this run keep the calibration they had."""
    columns = _old_columns(config, start)
    silent = np.isnan(correct[:, columns]).all(axis=0)
    parts = {name: getattr(fitted, name).copy() for name in ("scale", "bias", "is_own")}
    for name, part in parts.items():
        part[columns[silent]] = getattr(start.calibration, name)[silent]
    return dataclasses.replace(fitted, **parts)


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
    kept = [source.rows(torch.arange(len(source))) for source in _kept_sources(data)]
    for rows in (data.correct, data.train, data.validation, *kept):
        digest.update(repr(tuple(rows.shape)).encode())
        digest.update(np.ascontiguousarray(rows.numpy()).tobytes())
    return digest.hexdigest()


def _kept_sources(data: TrainingData) -> list[Source]:
    """Sources without an encoder in the loop: their vectors are part of what a run is made of."""
    return [source for source in (data.question, data.picture, data.profiles) if not source.modules()]
