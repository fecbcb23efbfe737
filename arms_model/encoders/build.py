"""From an encoder's settings (a block of params.yaml, an entry of encoders.json) to the encoder.

The kinds and their options stand in one table here, so that an option that its kind does not know is refused instead of
ignored. The encoders' own modules are imported late: the surface numbers need neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

from arms_model.encoders.protocol import Encoder, Modality, TrainableEncoder
from arms_model.errors import ConfigError

Kind = Literal["minilm", "transformers", "open_clip", "efficientnet", "surface", "pixels"]

MODALITIES: dict[Kind, Modality] = {
    "minilm": "question", "transformers": "question", "surface": "question",
    "open_clip": "picture", "efficientnet": "picture", "pixels": "picture",
}  # fmt: skip
TRAINABLE: tuple[Kind, ...] = ("minilm", "transformers", "open_clip", "efficientnet")
_REQUIRED = object()
_OPTIONS: dict[Kind, dict[str, Any]] = {  # option: its default
    "minilm": {"max_tokens": 256},
    "transformers": {
        "name": _REQUIRED, "weights": "pretrained", "tokenizer": None, "pooling": "first_token", "max_tokens": 256,
        "seed": 0,
    },
    "open_clip": {"name": _REQUIRED, "weights": _REQUIRED, "seed": 0},
    "efficientnet": {"size": 224},
    "surface": {},
    "pixels": {},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which encoder; what is left out (None) takes the kind's default.

    Attributes:
        kind: the kind of encoder.
        name: transformers: hub name or local folder (with random weights also a model type such as `distilbert`);
            open_clip: model name, e.g. `ViT-B-32`.
        weights: transformers: `pretrained` or `random`; open_clip: a pretrained tag, a local path, or `random`.
        tokenizer: transformers: hub name, local folder, or `minilm`, the vocabulary that the installed MiniLM brings
            (BERT uncased, which serves DistilBERT too); `name` where left out.
        pooling: transformers: `first_token` or `mean` over the tokens.
        max_tokens: text encoders: longer questions are cut here.
        size: efficientnet: side of the square that pictures are brought to, px.
        seed: seed of random weights.
    """

    kind: Kind
    name: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    pooling: Literal["first_token", "mean"] | None = None
    max_tokens: int | None = None
    size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        known = _OPTIONS[self.kind]
        for option in ("name", "weights", "tokenizer", "pooling", "max_tokens", "size", "seed"):
            value = getattr(self, option)
            if value is not None and option not in known:
                takes = ", ".join(known) or "no options"
                raise ValueError(f"{option} is no option of encoder kind '{self.kind}', which takes {takes}; remove it")
            if value is None and known.get(option) is _REQUIRED:
                raise ValueError(f"encoder kind '{self.kind}' needs {option}; set it")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"max_tokens is {self.max_tokens}, expected at least 2")
        if self.size is not None and (self.size % 32 or not 32 <= self.size <= 1024):
            raise ValueError(f"size is {self.size} px, expected a multiple of 32 from 32 to 1024")
        if self.kind == "transformers" and self.weights not in (None, "pretrained", "random"):
            raise ValueError(f"weights is '{self.weights}', expected 'pretrained' or 'random'")

    @property
    def modality(self) -> Modality:
        """Whether the encoder takes questions or pictures."""
        return MODALITIES[self.kind]

    def options(self) -> dict[str, Any]:
        """The kind's options, each with its value or default."""
        given = {option: getattr(self, option) for option in _OPTIONS[self.kind]}
        return {option: _OPTIONS[self.kind][option] if value is None else value for option, value in given.items()}


def build(settings: EncoderSettings) -> Encoder:
    """Build the encoder that `settings` describe, weights loaded and checked.

    Raises:
        ConfigError: an extra that is not installed, an unknown model name, weights that cannot be found.
        StorageError: weights whose checksum is not the pinned one.
    """
    options = settings.options()
    match settings.kind:
        case "minilm":
            from arms_model.encoders.minilm import minilm_encoder

            return minilm_encoder(**options)
        case "transformers":
            from arms_model.encoders.transformers_text import TransformersTextEncoder

            return TransformersTextEncoder(**options)
        case "open_clip":
            from arms_model.encoders.open_clip_picture import OpenClipPictureEncoder

            return OpenClipPictureEncoder(**options)
        case "efficientnet":
            from arms_model.encoders.efficientnet import EfficientNetEncoder

            return EfficientNetEncoder(**options)
        case "surface":
            from arms_model.encoders.surface import SurfaceEncoder

            return SurfaceEncoder()
        case "pixels":
            from arms_model.encoders.pixels import PixelsEncoder

            return PixelsEncoder()


def build_trainable(settings: EncoderSettings) -> TrainableEncoder:
    """Like `build`, for a training loop that moves the encoder's weights.

    Raises:
        ConfigError: the kind has no weights to train; or see `build`.
    """
    if settings.kind not in TRAINABLE:
        raise ConfigError(
            f"encoder kind '{settings.kind}' has nothing to train; trainable are: {', '.join(TRAINABLE)}."
        )
    return cast(TrainableEncoder, build(settings))
