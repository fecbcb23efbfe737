"""A trained router: one or several ARMS networks over named VLMs, their profile vectors and the calibration.

`Router` is what `storage.py` saves and loads and what a cascade is made of. It takes vectors; which encoders make them
is written in its configuration. Several members (beyond the paper) differ by seed; their logits are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arms_model.calibration import Calibration
from arms_model.encoders.build import EncoderSettings
from arms_model.errors import DataError
from arms_model.memory import Memory, memory_keys
from arms_model.network import ArmsNetwork, NetworkSettings

ProfileKind = Literal["sentence", "learned"]


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """What a router is made of besides its weights; stored beside them as JSON.

    Attributes:
        network: settings of every member.
        num_members: networks whose logits are averaged.
        bagging: whether each member held out another inner fold of the training queries; incremental training must hold
            out the same.
        question_encoders: the encoders whose vectors, side by side, are the question's, by name.
        picture_encoders: likewise the picture's.
        profile_encoder: name of the question encoder that encodes profiles.
        profile: whether profiles are encoded sentences or `learned` vectors.
        encoder_identities: what the frozen encoders' vectors were made with, by name; others do not fit.
        trainable_encoders: names of encoders that were trained with the router; their weights are stored with it.
        question_width: D_q.
        picture_width: D_v.
        profile_width: D_p.
        vlms: the K VLMs, sorted by name.
        profiles: their profile sentences.
    """

    network: NetworkSettings
    num_members: int
    bagging: bool = False
    question_encoders: dict[str, EncoderSettings]
    picture_encoders: dict[str, EncoderSettings]
    profile_encoder: str
    profile: ProfileKind
    encoder_identities: dict[str, str] = field(default_factory=dict)
    trainable_encoders: tuple[str, ...] = ()
    question_width: int
    picture_width: int
    profile_width: int
    vlms: tuple[str, ...]
    profiles: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.num_members < (2 if self.bagging else 1):
            raise ValueError(f"num_members must be at least 1, with bagging 2, got {self.num_members}")
        if list(self.vlms) != sorted(set(self.vlms)) or not self.vlms:
            raise ValueError(f"vlms must be sorted names without repeats, got {list(self.vlms)}")
        if len(self.profiles) != len(self.vlms):
            raise ValueError(f"{len(self.vlms)} VLMs need as many profiles, got {len(self.profiles)}")


@dataclass(kw_only=True)
class Router:
    """Scores VLMs for queries.

    Attributes:
        config: what it is made of.
        members: the networks.
        profile_vectors: (K, D_p) float32.
        encoder_modules: modules of the encoders trained with the router, by encoder name.
        memory: residuals of the training queries; None without one.
        calibration: scale and bias per VLM on the logits.
    """

    config: RouterConfig
    members: list[ArmsNetwork]
    profile_vectors: Tensor
    encoder_modules: dict[str, nn.Module] = field(default_factory=dict)
    memory: Memory | None = None
    calibration: Calibration

    @torch.inference_mode()
    def logits(self, question: NDArray[np.float32], picture: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits before calibration: the members' mean, moved by the memory where there is one.

        Args:
            question: (N, D_q) question vectors.
            picture: (N, D_v) picture vectors.

        Returns:
            (N, K) float64.

        Raises:
            DataError: vectors of another width than the router was trained on.
        """
        for name, rows, width in (
            ("question", question, self.config.question_width),
            ("picture", picture, self.config.picture_width),
        ):
            if rows.ndim != 2 or rows.shape[1] != width:
                raise DataError(
                    f"{name} vectors are {rows.shape}, this router takes (N, {width}); encode with its own encoders."
                )
        q, v = torch.from_numpy(np.ascontiguousarray(question)), torch.from_numpy(np.ascontiguousarray(picture))
        blocks = list(zip(torch.split(q, 1024), torch.split(v, 1024), strict=True))
        logits = torch.stack(
            [torch.cat([member.eval()(a, b, self.profile_vectors) for a, b in blocks]) for member in self.members]
        ).mean(0)
        if self.memory is None:
            return logits.double().numpy()
        return logit(self.memory.corrected(sigmoid(logits.double().numpy()), memory_keys(self.members[0], q, v)))

    def confidences(self, question: NDArray[np.float32], picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """`f_ik = sigmoid(z_ik)`, calibrated, (N, K) float32 in (0, 1); arguments as for `logits`."""
        return sigmoid(self.calibration.apply(self.logits(question, picture)))


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """`1 / (1 + exp(-z))`, float32."""
    return np.asarray(1 / (1 + np.exp(-np.clip(np.asarray(logits, dtype=np.float64), -60, 60))), dtype=np.float32)


def logit(confidences: NDArray[np.floating]) -> NDArray[np.float64]:
    """`log(f / (1 - f))` of confidences inside (0, 1), float64."""
    f = np.asarray(confidences, dtype=np.float64)
    return np.log(f) - np.log1p(-f)


def build_network(config: RouterConfig) -> ArmsNetwork:
    """A network of this configuration with fresh weights, drawn from torch's global generator."""
    return ArmsNetwork(
        config.network,
        question_width=config.question_width,
        picture_width=config.picture_width,
        profile_width=config.profile_width,
        num_vlms=len(config.vlms),
        learned_profiles=config.profile == "learned",
    )


@torch.no_grad()
def extended_network(network: ArmsNetwork, config: RouterConfig, old_vlms: Sequence[str]) -> ArmsNetwork:
    """`network` over more VLMs: all weights kept, rows kept per VLM moved to their new columns (equation 7's start).

    Args:
        network: over `old_vlms`.
        config: the extended router's, its `vlms` holding all of `old_vlms`.
        old_vlms: the columns of `network`.

    Returns:
        A new network over `config.vlms`.
    """
    extended = build_network(config)
    columns = [config.vlms.index(vlm) for vlm in old_vlms]
    own, weights = extended.state_dict(), network.state_dict()
    for name in ("head.vlm_vectors", "head.vlm_bias", "learned_profiles"):
        if name in weights:
            rows = own[name].clone()
            rows[columns] = weights[name]
            weights[name] = rows
    extended.load_state_dict(weights)
    return extended
