"""What the three train stages share: their settings, and the way from sealed tables to a router in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from arms_model.calibration import CalibrationSettings
from arms_model.encoders.build import EncoderSettings, build, build_trainable
from arms_model.encoders.protocol import Encoder, TrainableEncoder
from arms_model.encoders.question_text import question_text
from arms_model.errors import DataError
from arms_model.memory import MemorySettings
from arms_model.network import NetworkSettings
from arms_model.pictures import open_picture
from arms_model.router import ProfileKind, Router, RouterConfig
from arms_model.sources import EncodedInLoop, Joined, KeptVectors, Source
from arms_model.training import TrainingSettings
from tasks.common.dataset import IMAGES, Labels, describe_encoders, load_encoders, load_vectors


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """Sections `train_base` and `train_independent`: a router from fresh weights.

    Attributes:
        question_encoders: encoders of section `embed` whose vectors, side by side, are the question's.
        picture_encoders: likewise the picture's.
        profile_encoder: the question encoder that encodes profiles.
        profile: `sentence` takes those of stage `profiles`; `learned` is the ablation without profiles.
        trainable_encoders: encoders that are trained with the router instead of read from the kept vectors.
        num_members: networks whose logits are averaged (beyond the paper; 1 is the paper's).
        bagging: each member holds out another inner fold; see `fitting.fit_router` (beyond the paper).
        memory: keep a memory of the training queries (beyond the paper); null keeps none. Needs `bagging`.
        drop_unanswered: leave queries that no VLM of the pool answers out of the training rows, as the paper does.
        network: see `NetworkSettings`.
        training: see `TrainingSettings`.
        calibration: see `CalibrationSettings`.
    """

    question_encoders: tuple[str, ...]
    picture_encoders: tuple[str, ...]
    profile_encoder: str
    profile: ProfileKind = "sentence"
    trainable_encoders: tuple[str, ...] = ()
    num_members: int = 1
    bagging: bool = False
    memory: MemorySettings | None = None
    drop_unanswered: bool = False
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name in self.trainable_encoders:
            if name not in (*self.question_encoders, *self.picture_encoders):
                raise ValueError(
                    f"trainable_encoders names '{name}', which is neither a question nor a picture encoder here"
                )
        if self.trainable_encoders and (self.num_members > 1 or self.network.standardise):
            raise ValueError("trainable_encoders needs num_members: 1 and network.standardise: false")
        names = (*self.question_encoders, *self.picture_encoders)
        if len(set(names)) < len(names):
            raise ValueError(f"encoders {', '.join(names)} name one twice; its vectors would stand beside themselves")
        if self.memory is not None and not (self.bagging and self.network.standardise):
            raise ValueError(
                "memory needs bagging: true (its residuals come from members that did not see the query) and "
                "network.standardise: true (its keys are standardised vectors)"
            )
        if self.bagging and (self.num_members < 2 or self.drop_unanswered or self.trainable_encoders):
            raise ValueError("bagging needs num_members of 2 or more, drop_unanswered: false and no trainable_encoders")
        if self.profile_encoder not in self.question_encoders:
            raise ValueError(f"profile_encoder '{self.profile_encoder}' must be one of question_encoders")
        if not self.question_encoders or not self.picture_encoders:
            raise ValueError("question_encoders and picture_encoders must each name at least one encoder")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Sources of a router's inputs over a query set, with the encoders that run in the loop."""

    question: Source
    picture: Source
    profiles: Source


def use_one_thread_unless_encoders_train(trainable_encoders: Sequence[str]) -> None:
    """A router over kept vectors is small: more threads only wait for each other, most of all on a busy machine."""
    if not trainable_encoders:
        torch.set_num_threads(1)


def make_config(settings: RouterSettings, labels: Labels, inputs: Inputs) -> RouterConfig:
    """The configuration of a router over the VLMs of `labels`."""
    frozen_encoders = [
        name
        for name in (*settings.question_encoders, *settings.picture_encoders)
        if name not in settings.trainable_encoders
    ]
    return RouterConfig(
        network=settings.network,
        num_members=settings.num_members,
        bagging=settings.bagging,
        question_encoders=load_encoders(settings.question_encoders),
        picture_encoders=load_encoders(settings.picture_encoders),
        profile_encoder=settings.profile_encoder,
        profile=settings.profile,
        encoder_identities={name: e.identity for name, e in describe_encoders(frozen_encoders).items()},
        trainable_encoders=settings.trainable_encoders,
        question_width=inputs.question.width,
        picture_width=inputs.picture.width,
        profile_width=inputs.profiles.width,
        vlms=labels.vlms,
        profiles=labels.profiles,
    )


def make_inputs(
    queries: pl.DataFrame,
    profiles: Sequence[str],
    *,
    question_encoders: Sequence[str],
    picture_encoders: Sequence[str],
    profile_encoder: str,
    trainable_encoders: Sequence[str] = (),
    trained: Router | None = None,
) -> Inputs:
    """Sources for training: kept vectors for frozen encoders, encoders in the loop for trainable ones.

    Args:
        queries: N rows in their order.
        profiles: K profile sentences.
        question_encoders: names, in order.
        picture_encoders: names, in order.
        profile_encoder: name of a question encoder; where it is trainable, profiles go through the same weights.
        trainable_encoders: names of those that learn.
        trained: a router whose trained encoders are gone on from.
    """
    settings = load_encoders([*question_encoders, *picture_encoders, profile_encoder])
    running = {name: build_trainable(settings[name]) for name in trainable_encoders}
    for name, encoder in running.items():
        if trained is not None and name in trained.encoder_modules:
            encoder.module.load_state_dict(trained.encoder_modules[name].state_dict())
    texts = [
        question_text(question, choices) for question, choices in queries.select("question", "choices").iter_rows()
    ]
    paths = [IMAGES / image for image in queries["image"]]

    def source(modality: str, name: str) -> Source:
        if name not in running:
            return KeptVectors(torch.from_numpy(load_vectors(queries, modality, [name])))
        items: Sequence[Any] = texts if modality == "question" else paths
        return EncodedInLoop(running[name], items, load=None if modality == "question" else open_picture)

    return Inputs(
        question=Joined([source("question", name) for name in question_encoders]),
        picture=Joined([source("picture", name) for name in picture_encoders]),
        profiles=_profile_source(profiles, profile_encoder, settings[profile_encoder], running),
    )


def _profile_source(
    profiles: Sequence[str], name: str, settings: EncoderSettings, running: dict[str, TrainableEncoder]
) -> Source:
    if not profiles:
        return KeptVectors(torch.zeros(0, 0))
    if name in running:
        return EncodedInLoop(running[name], list(profiles))
    return KeptVectors(torch.from_numpy(encode_all(build(settings), list(profiles))))


def encode_all(encoder: Encoder, items: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
    """(N, width) vectors of `items` in batches, for the few that no store keeps."""
    parts = [
        encoder.encode([encoder.prepare(item) for item in items[start : start + batch_size]])
        for start in range(0, len(items), batch_size)
    ]
    return np.concatenate([np.zeros((0, encoder.width), dtype=np.float32), *parts])


def trained_inputs(router: Router, queries: pl.DataFrame, profiles: Sequence[str]) -> Inputs:
    """Sources as `router` takes them: its own encoders, with the weights it trained where it trained them.

    Raises:
        DataError: the kept vectors were made by another encoder than those the router was trained on.
    """
    config = router.config
    for name, encoder in describe_encoders(tuple(config.encoder_identities)).items():
        if encoder.identity != config.encoder_identities[name]:
            raise DataError(
                f"encoder '{name}' is now {encoder.identity}, but this router was trained on vectors of "
                f"{config.encoder_identities[name]}; run its train stage again (`dvc repro`)."
            )
    return make_inputs(
        queries,
        profiles,
        question_encoders=tuple(config.question_encoders),
        picture_encoders=tuple(config.picture_encoders),
        profile_encoder=config.profile_encoder,
        trainable_encoders=config.trainable_encoders,
        trained=router,
    )


def frozen(inputs: Inputs) -> Inputs:
    """The same sources with every vector computed once and kept."""
    return Inputs(**{name: _kept(getattr(inputs, name)) for name in ("question", "picture", "profiles")})


def _kept(source: Source, *, batch_size: int = 64) -> Source:
    with torch.inference_mode():
        parts = [source.rows(part) for part in torch.split(torch.arange(len(source)), batch_size)]
        return KeptVectors(torch.cat(parts).clone())


def router_vectors(router: Router, queries: pl.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Question and picture vectors (N, D_q), (N, D_v) of `queries` as `router` takes them."""
    inputs = frozen(trained_inputs(router, queries, ()))
    rows = torch.arange(queries.height)
    return inputs.question.rows(rows).numpy(), inputs.picture.rows(rows).numpy()


def training_rows(correct: NDArray[np.float32], splits: NDArray[np.str_], *, drop_unanswered: bool) -> torch.Tensor:
    """Rows of split `train` that have a label; without those that no VLM answers where asked."""
    asked = ~np.isnan(correct)
    keep = (splits == "train") & asked.any(1)
    if drop_unanswered:
        keep &= (np.where(asked, correct, 0) > 0).any(1)
    return torch.from_numpy(np.flatnonzero(keep))


def validation_rows(correct: NDArray[np.float32], splits: NDArray[np.str_]) -> torch.Tensor:
    """Rows of split `validation` that have a label; never filtered."""
    return torch.from_numpy(np.flatnonzero((splits == "validation") & (~np.isnan(correct)).any(1)))
