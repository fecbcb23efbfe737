"""Question text to vector with any text encoder that the transformers library knows.

Preset `paper` uses DistilBERT with the first token's state (arXiv 2606.08970, section on encoders); sentence encoders
such as MiniLM take the mean over tokens. Without weights (`random`) the same architecture serves tests of shapes and
speed. Source of the mean over tokens: Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from arms_model.encoders.identity import identity_of
from arms_model.encoders.protocol import Modality
from arms_model.encoders.weights import weights_sha256
from arms_model.errors import ConfigError

_VERSION = 1


class TransformersTextEncoder:
    """A transformers text encoder with a pooling over its last states."""

    modality: Modality = "question"

    def __init__(
        self,
        *,
        name: str,
        weights: str = "pretrained",
        tokenizer: str | None = None,
        pooling: Literal["first_token", "mean"] = "first_token",
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        """Load the network and its tokenizer.

        Args:
            name: hub name or local folder; with random weights also a model type such as `distilbert`.
            weights: `pretrained` or `random`.
            tokenizer: hub name, local folder, or `minilm` (the installed MiniLM's vocabulary); `name` where None.
            pooling: which of the last states make the vector.
            max_tokens: longer texts are cut here, special tokens counted.
            seed: seed of random weights.

        Raises:
            ConfigError: network or tokenizer cannot be found or do not fit each other.
        """
        self.module = _random(name, seed) if weights == "random" else _pretrained(name)
        config = self.module.config
        self.width = int(config.hidden_size)
        self._pooling = pooling
        self._tokenizer = _tokenizer(tokenizer or name)
        _check_fit(config, self._tokenizer, name=name, tokenizer_name=tokenizer or name, max_tokens=max_tokens)
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.enable_truncation(max_length=max_tokens)
        self.identity = identity_of(
            "transformers",
            version=_VERSION,
            weights=weights_sha256(self.module),
            tokenizer=hashlib.sha256(self._backend.to_str().encode()).hexdigest(),  # holds max_tokens too
            pooling=pooling,
        )

    def prepare(self, item: str) -> list[int]:
        """The text's token numbers, cut at `max_tokens`."""
        ids: list[int] = self._backend.encode(item).ids
        return ids

    def encode(self, prepared: Sequence[list[int]]) -> NDArray[np.float32]:
        """Vectors without gradient, (B, width) float32."""
        with torch.inference_mode():
            return self.forward(prepared).cpu().numpy()

    def forward(self, prepared: Sequence[list[int]]) -> torch.Tensor:
        """Vectors with gradient, (B, width) float32."""
        device = next(self.module.parameters()).device
        length = max(len(ids) for ids in prepared)
        pad = self._tokenizer.pad_token_id or 0
        tokens = torch.tensor([ids + [pad] * (length - len(ids)) for ids in prepared], device=device)  # (B, T)
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in prepared], device=device)  # (B, T)
        states: torch.Tensor = self.module(
            input_ids=tokens, attention_mask=mask
        ).last_hidden_state.float()  # (B, T, width)
        if self._pooling == "first_token":
            return states[:, 0]
        weight = mask[..., None].to(states.dtype)  # (B, T, 1)
        return (states * weight).sum(1) / weight.sum(1)


def _pretrained(name: str) -> Any:
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bar would mix with ours
    try:
        module = AutoModel.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, local_files_only=Path(name).is_dir()
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"text encoder '{name}' could not be loaded ({_first_line(error)}); expected a hub name or a local folder "
            "with config.json and model.safetensors. Correct the name, or give a folder where no hub can be reached."
        ) from None
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return _without_pooler(module)


def _random(name: str, seed: int) -> Any:
    if name in CONFIG_MAPPING:
        config = AutoConfig.for_model(name)
    else:
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"configuration of text encoder '{name}' could not be read ({_first_line(error)}); expected a model "
                "type such as 'distilbert', a hub name, or a local folder with config.json."
            ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _without_pooler(AutoModel.from_config(config))  # type: ignore[no-untyped-call]


def _without_pooler(module: Any) -> Any:
    """Drop BERT's pooler, which the vector never passes: an unused parameter would get no gradient."""
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return module.eval()


def _tokenizer(name: str) -> Any:
    if name == "minilm":
        from arms_model.encoders.minilm import minilm_folder

        name = str(minilm_folder())
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, local_files_only=Path(name).is_dir())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer '{name}' could not be loaded ({_first_line(error)}); set `tokenizer` to a hub name, a local "
            "folder, or 'minilm' (BERT's uncased vocabulary, from the installed extra)."
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer '{name}' has no tokenizer.json; only fast tokenizers may be used from threads.")
    return tokenizer


def _check_fit(config: Any, tokenizer: Any, *, name: str, tokenizer_name: str, max_tokens: int) -> None:
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"tokenizer '{tokenizer_name}' has {len(tokenizer)} tokens, encoder '{name}' knows {config.vocab_size}; "
            "set `tokenizer` to the encoder's own."
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_tokens > positions:
        raise ConfigError(f"max_tokens is {max_tokens}, encoder '{name}' takes at most {positions}; lower it.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
