"""A served router at work: question texts and pictures in; confidences, the chosen VLM and the reason out.

Questions and pictures go through the encoders that the router's configuration names, and only where they make the very
vectors that it was trained on (their identities are compared). Encoders are built when the first question comes, and
one that both routers of a cascade name is built and run once.

**Decision**: both routers of a cascade score every query, so that an answer holds a confidence for each candidate; a
router is cheap beside the encoders in front of it. The choice is Algorithm 1's all the same.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arms_model.cascade import cascade
from arms_model.encoders.build import EncoderSettings, build, build_trainable
from arms_model.encoders.protocol import Encoder
from arms_model.encoders.question_text import question_text
from arms_model.errors import DataError
from arms_model.metrics import choose
from arms_model.pictures import DEFAULT_MAX_PIXELS, decode_picture, open_picture
from arms_model.router import Router, RouterConfig
from arms_model.settings import nearest

Picture = bytes | Path
Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]  # (N, D_q) of the questions, (N, D_v) of the pictures
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is chosen for each query.

    Attributes:
        column: (N,) int64 among the served VLMs; -1 without a candidate.
        is_new_run: (N,) bool, whether Algorithm 1 runs the second router.
    """

    column: NDArray[np.int64]
    is_new_run: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one query.

    Attributes:
        confidences: that each candidate answers rightly, by VLM name, in (0, 1).
        vlm: the chosen one.
        reason: why, in a sentence.
    """

    confidences: dict[str, float]
    vlm: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedRouter:
    """One router, or a cascade of two.

    Attributes:
        strategy: what it is called, such as `base` or `base + independent`.
        tau: threshold of the cascade; None for one router.
        base: the router that is asked first.
        new: of a cascade: the router that scores the VLMs that `base` does not know.
        digest: sha256 that names everything it was loaded from; "" where it was put together in memory.
        retired: VLMs that a router knows and that are not chosen any more, sorted.
    """

    strategy: str
    tau: float | None
    base: Router
    new: Router | None = None
    digest: str = ""
    retired: tuple[str, ...] = ()
    _encoders: dict[str, Encoder] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def routers(self) -> tuple[Router, ...]:
        """The routers, first to last."""
        return (self.base,) if self.new is None else (self.base, self.new)

    @property
    def vlms(self) -> tuple[str, ...]:
        """The selection space: K VLMs, sorted by name."""
        return tuple(sorted({vlm for router in self.routers for vlm in router.config.vlms} - {*self.retired}))

    @property
    def is_base(self) -> NDArray[np.bool_]:
        """(K,) bool, the VLMs that `base` scores."""
        return np.isin(self.vlms, self.base.config.vlms)

    def confidences(self, vectors: Sequence[Vectors]) -> NDArray[np.float32]:
        """That each VLM answers rightly, under the router that scores it.

        Args:
            vectors: per router the question and picture vectors of N queries.

        Returns:
            (N, K) float32 in (0, 1).
        """
        vlms, is_base = self.vlms, self.is_base
        found = np.empty((len(vectors[0][0]), len(vlms)), dtype=np.float32)
        columns_of = (is_base, ~is_base)[: len(self.routers)]
        for router, (question, picture), mine in zip(self.routers, vectors, columns_of, strict=True):
            columns = np.flatnonzero(mine)
            own = [router.config.vlms.index(vlms[column]) for column in columns]
            found[:, columns] = router.confidences(question, picture)[:, own]
        return found

    def choose(self, confidences: NDArray[np.floating], candidates: NDArray[np.bool_]) -> Choice:
        """Choose a VLM for each query.

        Args:
            confidences: (N, K).
            candidates: (N, K) bool.
        """
        if self.tau is None:
            column = choose(confidences, candidates)
            return Choice(column=column, is_new_run=np.zeros(len(column), dtype=np.bool_))
        base, new = np.flatnonzero(self.is_base), np.flatnonzero(~self.is_base)
        choice = cascade(
            confidences[:, base],
            base_candidates=candidates[:, base],
            new_confidence=confidences[:, new],
            new_candidates=candidates[:, new],
            tau=self.tau,
        )
        return Choice(column=choice.joint_column(base, new), is_new_run=choice.is_new_run)

    def answer(
        self,
        questions: Sequence[str],
        pictures: Sequence[Picture],
        *,
        choices: Sequence[Sequence[str] | None] | None = None,
        candidates: Sequence[Sequence[str] | None] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[Answer]:
        """Choose a VLM for each of N queries.

        Args:
            questions: their texts.
            pictures: each a file's bytes or its path.
            choices: the answers that a question offers, where its text does not hold them; None: there are none.
            candidates: the VLMs that may be chosen for each query; None: all.
            max_pixels: a picture with more is refused from its header.

        Returns:
            An answer per query, in their order.

        Raises:
            DataError: numbers of questions, pictures, choices and candidates differ; an empty question, no picture, an
                unknown candidate or none at all; vectors of other encoders than the router was trained on.
            ConfigError: an encoder that this environment lacks.
        """
        texts = _texts(questions, choices)
        for name, given in (("pictures", pictures), ("candidates", candidates)):
            if given is not None and len(given) != len(texts):
                raise DataError(f"{len(texts)} questions came with {len(given)} {name}; give one for each question.")
        mask = self._mask(candidates, len(texts))
        if not texts:
            return []
        scores = self.confidences(self._encode(texts, pictures, max_pixels))
        choice = self.choose(scores, mask)
        return [self._answer(scores[row], mask[row], choice, row) for row in range(len(texts))]

    def prepare(self) -> None:
        """Build the encoders now instead of with the first question.

        Raises:
            ConfigError: an encoder that this environment lacks.
            DataError: an encoder here makes other vectors than the router was trained on.
        """
        with self._lock:
            for router in self.routers:
                for name, settings in _settings(router.config).items():
                    key = _key(router, name, settings)
                    if key not in self._encoders:
                        self._encoders[key] = _built(router, name, settings)

    def _mask(self, candidates: Sequence[Sequence[str] | None] | None, count: int) -> NDArray[np.bool_]:
        vlms = self.vlms
        mask = np.ones((count, len(vlms)), dtype=np.bool_)
        for row, names in enumerate(candidates or ()):
            if names is None:
                continue
            if isinstance(names, str) or not len(names):
                raise DataError(
                    f"candidates of query {row} are {names!r}, expected a list of at least one VLM; leave them out to "
                    "choose among all."
                )
            for name in names:
                if name in self.retired:
                    raise DataError(
                        f"candidate {name!r} of query {row} was retired: this router does not choose it any more; "
                        f"leave it out, and name some of: {', '.join(vlms)}."
                    )
                if name not in vlms:
                    raise DataError(
                        f"candidate {name!r} of query {row} is no VLM of this router; {nearest(str(name), vlms)}"
                    )
            mask[row] = np.isin(vlms, list(names))
        return mask

    def _encode(self, texts: Sequence[str], pictures: Sequence[Picture], max_pixels: int) -> list[Vectors]:
        """Per router the question and picture vectors."""
        self.prepare()
        parts: dict[str, list[NDArray[np.float32]]] = {key: [] for key in self._encoders}
        for start in range(0, len(texts), BATCH):
            stop = min(start + BATCH, len(texts))
            opened = [_opened(pictures[row], row, max_pixels) for row in range(start, stop)]
            for key, encoder in self._encoders.items():
                items: Sequence[Any] = texts[start:stop] if encoder.modality == "question" else opened
                parts[key].append(encoder.encode([encoder.prepare(item) for item in items]))
        vectors = {key: np.concatenate(blocks) for key, blocks in parts.items()}

        def side_by_side(router: Router, encoders: Mapping[str, EncoderSettings]) -> NDArray[np.float32]:
            return np.concatenate([vectors[_key(router, name, block)] for name, block in encoders.items()], axis=1)

        return [
            (
                side_by_side(router, router.config.question_encoders),
                side_by_side(router, router.config.picture_encoders),
            )
            for router in self.routers
        ]

    def _answer(self, scores: NDArray[np.float32], mask: NDArray[np.bool_], choice: Choice, row: int) -> Answer:
        vlms, column = self.vlms, int(choice.column[row])
        confidences = {vlms[k]: float(scores[k]) for k in np.flatnonzero(mask)}
        known = {vlms[k]: float(scores[k]) for k in np.flatnonzero(mask & self.is_base)}
        others = {vlm: score for vlm, score in confidences.items() if vlm not in known}
        if self.tau is None:
            reason = _reason_of_one(confidences, vlms[column])
        else:
            reason = _reason_of_cascade(known, others, vlms[column], tau=self.tau, is_new_run=choice.is_new_run[row])
        return Answer(confidences=confidences, vlm=vlms[column], reason=reason)


def _reason_of_one(confidences: Mapping[str, float], chosen: str) -> str:
    rest = {vlm: score for vlm, score in confidences.items() if vlm != chosen}
    if not rest:
        return f"{chosen} is the only candidate ({confidences[chosen]:.2f})"
    second = max(rest, key=lambda vlm: rest[vlm])
    return (
        f"{chosen} has the highest confidence of {len(confidences)} candidates "
        f"({confidences[chosen]:.2f}; next is {second}, {rest[second]:.2f})"
    )


def _reason_of_cascade(
    known: Mapping[str, float], others: Mapping[str, float], chosen: str, *, tau: float, is_new_run: bool
) -> str:
    """Why Algorithm 1 chose: `known` are the candidates that the base router scores, `others` those of the new one."""
    if not known:
        return f"the base router knows no candidate; {chosen} is the new router's first ({others[chosen]:.2f})"
    best = max(known, key=lambda vlm: known[vlm])
    if not others:
        return f"the new router knows no candidate; {chosen} is the base router's first ({known[chosen]:.2f})"
    if not is_new_run:
        return f"the base router is sure of {chosen} ({known[chosen]:.2f} > tau {tau:g})"
    first = max(others, key=lambda vlm: others[vlm])
    unsure = f"the base router is not sure of {best} ({known[best]:.2f} <= tau {tau:g})"
    if chosen in others:
        return f"{unsure}, and the new router has more confidence in {chosen} ({others[chosen]:.2f})"
    return f"{unsure}, but the new router has no more confidence in {first} ({others[first]:.2f})"


def _texts(questions: Sequence[str], choices: Sequence[Sequence[str] | None] | None) -> list[str]:
    if isinstance(questions, str):
        raise DataError("questions came as one text, expected a list of texts; put it in a list.")
    if choices is not None and len(choices) != len(questions):
        raise DataError(f"{len(questions)} questions came with {len(choices)} lists of choices; give one for each.")
    for row, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question {row} is {question!r}, expected a text that is not empty.")
    return [
        question_text(text, given) for text, given in zip(questions, choices or [None] * len(questions), strict=True)
    ]


def _opened(picture: Picture, row: int, max_pixels: int) -> Image.Image:
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode_picture(bytes(picture), name=f"of query {row}", max_pixels=max_pixels)
    if isinstance(picture, Path):
        return open_picture(picture, max_pixels=max_pixels)
    raise DataError(
        f"the picture of query {row} is of type {type(picture).__name__}, expected a file's bytes or its path (Path)."
    )


def _settings(config: RouterConfig) -> dict[str, EncoderSettings]:
    return {**config.question_encoders, **config.picture_encoders}


def _key(router: Router, name: str, settings: EncoderSettings) -> str:
    """What tells encoders apart: the settings; one that was trained belongs to its router."""
    owner = f"{id(router)} " if name in router.config.trainable_encoders else ""
    return owner + repr(dataclasses.astuple(settings))


def _built(router: Router, name: str, settings: EncoderSettings) -> Encoder:
    if name in router.config.trainable_encoders:
        trained = build_trainable(settings)
        trained.module.load_state_dict(router.encoder_modules[name].state_dict())
        trained.module.eval()
        return trained
    encoder = build(settings)
    expected = router.config.encoder_identities.get(name)
    if encoder.identity != expected:
        raise DataError(
            f"encoder '{name}' here is {encoder.identity}, but this router was trained on vectors of {expected}; "
            "install the version it names, or train the router again."
        )
    return encoder
