"""Preset `paper`: its values are the paper's, and its network has the paper's shapes (weights random: no hub is asked).

One network of full size is built and one step's gradients are computed; all tests look at that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn

from arms_model.batches import Batch
from arms_model.encoders.build import EncoderSettings, build_trainable
from arms_model.network import ArmsNetwork
from arms_model.settings import parse
from arms_model.sources import EncodedInLoop
from arms_model.training import TrainingData, batch_loss
from tasks.common.routers import RouterSettings
from tasks.train_incremental import IncrementalSettings

PRESET: dict[str, Any] = YAML(typ="safe").load((Path(__file__).parents[2] / "presets/paper.yaml").read_text())
ROUTER = parse(RouterSettings, PRESET["train_base"], "train_base")
QUESTIONS = ["How many bars are higher than 3?", "What is the sum of both angles?\nA. 90\nB. 180"]
PROFILES = ["Toy One, 2 billion parameters.", "Toy Two, 7 billion parameters.", "Toy Three, by Toy Lab."]
NAN = float("nan")

# Worked by hand from the published architectures and from arms-model's equations 2 to 5; D = 768, D_v = 512, E = 4.
CLIP_VIT_B_32 = 87_849_216  # its picture tower with the projection to 512
DISTILBERT = 66_362_880  # 6 layers over the uncased vocabulary of 30,522
GATE = (768 + 512) * 4 + 4
EXPERT = 512 * 768 + 2 * 1536 + (1536 * 3072 + 3072) + (3072 * 768 + 768)  # W_V, layer norm, two linear layers
CLASSIFIER = 2 * 1536 + (1536 * 768 + 768)  # layer norm, P; no projection of the profile


@dataclass(frozen=True, kw_only=True)
class Built:
    """The preset's network over two queries and three VLMs, with the gradients of one step."""

    modules: dict[str, nn.Module]
    question: torch.Tensor
    picture: torch.Tensor
    profiles: torch.Tensor
    logits: torch.Tensor
    loss: float


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    blocks = {**PRESET["embed"]["questions"], **PRESET["embed"]["pictures"]}
    (question_encoder,) = ROUTER.question_encoders
    (picture_encoder,) = ROUTER.picture_encoders
    without_hub = {"name": "distilbert", "weights": "random", "tokenizer": "minilm"}  # the same uncased vocabulary
    text = build_trainable(EncoderSettings(**blocks[question_encoder] | without_hub))
    clip = build_trainable(EncoderSettings(**blocks[picture_encoder] | {"weights": "random"}))
    data = TrainingData(
        question=EncodedInLoop(text, QUESTIONS),
        picture=EncodedInLoop(clip, [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy")]),
        profiles=EncodedInLoop(text, PROFILES),
        correct=torch.tensor([[1.0, 0.0, NAN], [0.0, 1.0, 1.0]]),
        train=torch.arange(2),
        validation=torch.arange(0),
    )
    torch.manual_seed(0)
    network = ArmsNetwork(
        ROUTER.network, question_width=text.width, picture_width=clip.width, profile_width=text.width, num_vlms=3
    )
    pairs = Batch(queries=torch.tensor([0, 0, 1, 1, 1]), vlms=torch.tensor([0, 1, 0, 1, 2]))
    loss = batch_loss(network, data, pairs, ROUTER.training)
    torch.autograd.backward(loss)
    with torch.no_grad():
        q, v, p = (
            data.question.rows(torch.arange(2)),
            data.picture.rows(torch.arange(2)),
            data.profiles.rows(torch.arange(3)),
        )
        logits = network.eval()(q, v, p)
    modules = {"network": network, "text": text.module, "clip": clip.module}
    yield Built(modules=modules, question=q, picture=v, profiles=p, logits=logits, loss=loss.item())
    for module in modules.values():
        module.zero_grad(set_to_none=True)


def num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_vectors_and_logits_have_the_papers_shapes(built: Built) -> None:
    assert built.question.shape == (2, 768)
    assert built.picture.shape == (2, 512)
    assert built.profiles.shape == (3, 768)
    assert built.logits.shape == (2, 3)
    assert torch.isfinite(built.logits).all() and built.logits.abs().max() <= 5  # the clamp of equation 6


def test_weights_are_185_million_so_the_papers_800m_are_megabytes(built: Built) -> None:
    counts = {name: num_weights(module) for name, module in built.modules.items()}
    assert counts == {"text": DISTILBERT, "clip": CLIP_VIT_B_32, "network": GATE + 4 * EXPERT + CLASSIFIER}
    total = sum(counts.values())
    assert total == 185_312_772
    assert total * 4 / 1e9 == pytest.approx(0.74, abs=0.005)  # GB in float32


def test_every_weight_receives_a_finite_gradient_in_one_step(built: Built) -> None:
    for part, module in built.modules.items():
        for name, parameter in module.named_parameters():
            assert parameter.requires_grad, f"{part}.{name}"
            assert parameter.grad is not None, f"{part}.{name}"
            assert torch.isfinite(parameter.grad).all(), f"{part}.{name}"
    assert built.loss > 0


@pytest.mark.parametrize("part", ["text", "clip"])
def test_step_moves_an_encoder_from_its_first_layer_on(built: Built, part: str) -> None:
    gradients = [parameter.grad for parameter in built.modules[part].parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in (gradients[0], gradients[2]))


def test_hyperparameters_are_those_of_section_5_1_4() -> None:
    training = ROUTER.training
    assert training.batch_size == 64  # "batch size of 64"
    assert training.learning_rate == 8e-5  # "a learning rate of 8e-5"
    assert training.weight_decay == 1e-2  # "a weight decay of 1e-2"
    assert ROUTER.network.num_experts == 4  # "the expert number is 4"
    assert PRESET["embed"]["pictures"]["clip"]["name"].startswith("ViT-B-32")  # "CLIP-ViT-B/32 as image encoder"
    assert PRESET["embed"]["questions"]["distilbert"]["name"] == "distilbert-base-uncased"  # "DistilBERT"


def test_training_is_the_papers() -> None:
    training = ROUTER.training
    assert training.epochs == 2  # section 5.3.2: "despite being trained for only two epochs"
    assert training.batching == "by_pair"  # section 3.1: a sample is a (query, VLM) pair
    assert training.patience is None and training.schedule == "constant"
    beyond = ("contrast_weight", "vlm_vector_penalty", "balance_penalty")
    assert [getattr(training, name) for name in beyond] == [0, 0, 0]
    assert training.loss_average == "pairs" and training.vlm_learning_rate_factor == 1
    assert set(ROUTER.trainable_encoders) == {"distilbert", "clip"}  # section 5.4: freezing one is an ablation
    assert ROUTER.drop_unanswered  # section 3.1: "filtering out queries that none of the VLMs could answer"


def test_network_is_the_papers_with_nothing_beyond_it() -> None:
    network, head = ROUTER.network, ROUTER.network.head
    assert network.fusion == "pooled" and network.top_k is None
    assert not network.standardise and network.picture_components is None and network.input_dropout == 0
    assert head.kind == "cosine" and head.profile_projection == "none"
    assert ROUTER.num_members == 1 and ROUTER.calibration.kind == "none"
    assert not ROUTER.bagging and ROUTER.memory is None


def test_open_choices_are_decided_as_written_down() -> None:
    network, head = ROUTER.network, ROUTER.network.head
    assert (network.hidden_factor, head.classifier_input, head.clamp) == (4, "query", 5)
    assert PRESET["embed"]["questions"]["distilbert"]["pooling"] == "first_token"


def test_both_further_routers_train_like_the_base_router() -> None:
    assert parse(RouterSettings, PRESET["train_independent"], "train_independent") == ROUTER
    incremental = parse(IncrementalSettings, PRESET["train_incremental"], "train_incremental")
    assert vars(incremental.training) | {"moving": ROUTER.training.moving} == vars(ROUTER.training)
    assert incremental.training.moving == ("gate", "experts", "head")
    assert incremental.replay_fraction == 0 and incremental.calibration.kind == "none"
    assert incremental.drop_unanswered


def test_clip_has_the_activation_that_its_weights_were_trained_with() -> None:
    # open_clip only warns of a mismatch, and the vectors are wrong then
    block = PRESET["embed"]["pictures"]["clip"]
    wanted = open_clip.pretrained.get_pretrained_cfg(block["name"], block["weights"])["quick_gelu"]
    assert open_clip.get_model_config(block["name"])["quick_gelu"] == wanted
