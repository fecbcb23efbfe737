from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, DistilBertConfig, PreTrainedTokenizerFast

from arms_model.encoders.minilm import minilm_encoder, minilm_folder
from arms_model.encoders.transformers_text import TransformersTextEncoder
from arms_model.errors import ConfigError

TEXTS = ["how many red balls", "red", "how many how many balls are red red red"]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "how", "many", "red", "balls", "are"]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT of nine words and 16 numbers, as a local folder holds one."""
    path = tmp_path_factory.mktemp("tiny")
    config = DistilBertConfig(vocab_size=9, dim=16, n_heads=2, n_layers=2, hidden_dim=32, max_position_embeddings=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)  # noqa: S106
    return path


def encoder_of(folder: Path, **options: Any) -> TransformersTextEncoder:
    return TransformersTextEncoder(**({"name": str(folder), "max_tokens": 32} | options))


@pytest.mark.parametrize("pooling", ["first_token", "mean"])
def test_vectors_are_the_networks_states_pooled_text_by_text(folder: Path, pooling: Any) -> None:
    encoder = encoder_of(folder, pooling=pooling)
    network = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, encoder.encode([encoder.prepare(text) for text in TEXTS]), strict=True):
        ids = [1, *(WORDS.index(word) for word in text.split()), 2]
        with torch.inference_mode():
            states = network(input_ids=torch.tensor([ids])).last_hidden_state[0]  # (T, 16), nothing padded
        expected = states[0] if pooling == "first_token" else states.mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_long_text_is_cut_at_max_tokens(folder: Path) -> None:
    encoder = encoder_of(folder, max_tokens=4)
    assert encoder.prepare("how many red balls are red") == [1, 4, 5, 2]
    assert encoder.identity != encoder_of(folder, max_tokens=5).identity


def test_preparing_from_several_threads_gives_the_same(folder: Path) -> None:
    encoder = encoder_of(folder)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encoder.prepare, TEXTS * 100)) == [encoder.prepare(text) for text in TEXTS] * 100


def test_random_weights_follow_their_seed_and_leave_torchs_own(folder: Path) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (encoder_of(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.identity == same.identity
    assert len({one.identity, other.identity, encoder_of(folder).identity}) == 3


def test_gradient_reaches_every_parameter(folder: Path) -> None:
    encoder = encoder_of(folder, pooling="mean")
    encoder.forward([encoder.prepare(text) for text in TEXTS]).square().sum().backward()
    assert not [name for name, parameter in encoder.module.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "/nowhere/model"}, "text encoder '/nowhere/model' could not be loaded"),
        ({"name": "/nowhere/model", "weights": "random"}, "configuration of text encoder '/nowhere/model'"),
        ({"tokenizer": "/nowhere/tokenizer"}, "tokenizer '/nowhere/tokenizer' could not be loaded"),
        ({"tokenizer": "minilm"}, "encoder '.*' knows 9; set `tokenizer` to the encoder's own"),
        ({"max_tokens": 33}, "max_tokens is 33, encoder '.*' takes at most 32; lower it"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        encoder_of(folder, **options)


def test_distilbert_of_the_paper_takes_minilms_vocabulary() -> None:
    encoder = TransformersTextEncoder(name="distilbert", weights="random", tokenizer="minilm")
    assert encoder.encode([encoder.prepare("How many red balls?")]).shape == (1, 768)
    # 66.4 million parameters: DistilBERT's published size
    assert sum(parameter.numel() for parameter in encoder.module.parameters()) == 66_362_880


def test_minilm_vectors_are_the_mean_over_the_tokens() -> None:
    encoder = minilm_encoder()
    texts = ["How many red balls are there?", "Red."]
    found = encoder.encode([encoder.prepare(text) for text in texts])
    assert found.shape == (2, 384)
    network = AutoModel.from_pretrained(minilm_folder()).eval()
    with torch.inference_mode():
        states = network(input_ids=torch.tensor([encoder.prepare(texts[1])])).last_hidden_state[0]
    np.testing.assert_allclose(found[1], states.mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_minilm_puts_a_paraphrase_nearer_than_another_question() -> None:
    encoder = minilm_encoder()
    texts = ["How many red balls are there?", "Count the red balls.", "What is the slope of the line?"]
    vectors = encoder.encode([encoder.prepare(text) for text in texts])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
