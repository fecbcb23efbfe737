"""Encoders that learn with the router: trained in the loop, stored with it, gone on from, and used where it is scored.

A tree of toy queries is taken through all stages once (in this process, to save the imports): the base router trains
MiniLM and EfficientNet, the incremental one goes on from them, the independent one trains MiniLM alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from arms_model.calibration import CalibrationSettings
from arms_model.encoders.build import EncoderSettings, build_trainable
from arms_model.fitting import FittedRouter, fit_router
from arms_model.settings import parse
from arms_model.storage import load_router, save_router
from arms_model.training import TrainingData
from tasks.common.dataset import Labels, load_labels, load_queries, load_splits
from tasks.common.params import STAGES
from tasks.common.routers import (
    Inputs,
    RouterSettings,
    frozen,
    make_config,
    make_inputs,
    router_vectors,
    trained_inputs,
    training_rows,
    validation_rows,
)
from tests.conftest import Tree, write_recorded, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from torch import Tensor, nn

    from arms_model.sources import Source

TRAINING = {"epochs": 2, "batching": "by_query", "batch_size": 16, "learning_rate": 1e-3}
ROUTER = {
    "question_encoders": ["surface", "minilm"],  # not in the alphabet's order: vectors must stay side by side in it
    "picture_encoders": ["efficientnet"],
    "profile_encoder": "minilm",
    "trainable_encoders": ["efficientnet", "minilm"],  # the picture's first: names must not be mixed up
    "network": {"num_experts": 2, "width": 16, "head": {"kind": "cosine", "profile_projection": "none"}},
    "training": TRAINING,
    "calibration": {"kind": "none"},
}
SETTINGS = parse(RouterSettings, ROUTER, "train_base")
EMBED = {
    "questions": {"minilm": {"kind": "minilm", "max_tokens": 32}, "surface": {"kind": "surface"}},
    "pictures": {"efficientnet": {"kind": "efficientnet", "size": 32}},
}
MODULES = {
    "minilm": EncoderSettings(kind="minilm", max_tokens=32),
    "efficientnet": EncoderSettings(kind="efficientnet", size=32),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another number of threads round otherwise, and stages over kept vectors set it for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """The tree after all stages; the process stands in it."""
    folder = tmp_path_factory.mktemp("trainable")
    sections = {
        "embed": EMBED,
        "train_base": ROUTER,
        "train_incremental": {"training": TRAINING | {"moving": ["gate", "experts", "head"]}},
        "train_independent": ROUTER | {"trainable_encoders": ["minilm"]},
    }
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder, sections=sections)
    with contextlib.chdir(tree.folder):
        for stage in STAGES:
            importlib.import_module(f"tasks.{stage}").body()
        yield tree


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `train_base` trains on, with encoders of its own: training moves their weights."""

    queries: pl.DataFrame
    labels: Labels
    inputs: Inputs
    data: TrainingData


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that nobody stopped, and what came out."""

    run: Run
    fitted: FittedRouter


def start(settings: RouterSettings = SETTINGS) -> Run:
    queries = load_queries()
    labels, splits = load_labels(queries, ["base"]), load_splits(queries)
    inputs = make_inputs(
        queries,
        labels.profiles,
        question_encoders=settings.question_encoders,
        picture_encoders=settings.picture_encoders,
        profile_encoder=settings.profile_encoder,
        trainable_encoders=settings.trainable_encoders,
    )
    data = TrainingData(
        **vars(inputs),
        correct=torch.from_numpy(labels.correct),
        train=training_rows(labels.correct, splits, drop_unanswered=settings.drop_unanswered),
        validation=validation_rows(labels.correct, splits),
    )
    return Run(queries=queries, labels=labels, inputs=inputs, data=data)


def fit(run: Run, settings: RouterSettings = SETTINGS, **more: Any) -> FittedRouter:
    config = make_config(settings, run.labels, run.inputs)
    none = CalibrationSettings(kind="none")
    return fit_router(config, run.data, training=settings.training, calibration=none, seed=0, **more)


@pytest.fixture(scope="module")
def whole(tree: Tree) -> Whole:
    run = start()
    return Whole(run=run, fitted=fit(run))


def stored(stage: str) -> dict[str, Tensor]:
    return load_file(Path("models") / stage / "weights.safetensors")


def encoder_weights(weights: dict[str, Tensor], encoder: str) -> dict[str, Tensor]:
    prefix = f"encoders.{encoder}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("encoder", ["minilm", "efficientnet"])
def test_stored_router_holds_encoders_whose_weights_moved(tree: Tree, encoder: str) -> None:
    pretrained = build_trainable(MODULES[encoder]).module
    found = encoder_weights(stored("train_base"), encoder)
    assert set(found) == set(pretrained.state_dict())
    still = [name for name, value in pretrained.named_parameters() if torch.equal(value, found[name])]
    assert not still


def test_means_and_deviations_of_batch_norm_stay_those_of_the_pretrained_weights(tree: Tree) -> None:
    # else a query's vector would depend on the other rows of its batch while training
    found = encoder_weights(stored("train_base"), "efficientnet")
    kept = dict(build_trainable(MODULES["efficientnet"]).module.named_buffers())
    assert any(name.endswith("running_var") for name in kept)
    for name, value in kept.items():
        assert torch.equal(found[name], value), name


def test_metrics_count_the_weights_of_trained_encoders_too(tree: Tree) -> None:
    metrics = json.loads(Path("metrics/train_base.json").read_text())
    router = load_router(Path("models/train_base"))
    counts = [sum(p.numel() for p in m.parameters()) for m in (*router.encoder_modules.values(), *router.members)]
    assert metrics["num_weights"] == sum(counts)
    assert counts[:2] == [3_371_008, 22_565_376]  # EfficientNet-Lite0 without its classifier; MiniLM without its pooler


def test_only_named_encoders_are_stored(tree: Tree) -> None:
    weights = stored("train_independent")
    assert encoder_weights(weights, "minilm")
    assert not encoder_weights(weights, "efficientnet")


def test_frozen_router_stores_no_encoder(tree: Tree, tmp_path: Path) -> None:
    settings = replace(SETTINGS, trainable_encoders=())
    save_router(fit(start(settings), settings).router, tmp_path)
    assert not [name for name in load_file(tmp_path / "weights.safetensors") if name.startswith("encoders.")]


def test_incremental_router_keeps_the_base_routers_encoders(tree: Tree) -> None:
    base, incremental = stored("train_base"), stored("train_incremental")
    names = [name for name in base if name.startswith("encoders.")]
    assert names and all(torch.equal(base[name], incremental[name]) for name in names)
    assert not torch.equal(base["members.0.head.project.weight"], incremental["members.0.head.project.weight"])


def test_base_profiles_vectors_stay_valid_in_the_incremental_router(tree: Tree) -> None:
    base, incremental = (load_router(Path("models") / name) for name in ("train_base", "train_incremental"))
    columns = [incremental.config.vlms.index(vlm) for vlm in base.config.vlms]
    torch.testing.assert_close(incremental.profile_vectors[columns], base.profile_vectors, atol=1e-5, rtol=1e-5)


def test_evaluation_scores_all_three_routers(tree: Tree) -> None:
    table = Path("cascade_eval/table.csv").read_text()
    for row in ("ARMS base", "ARMS incremental", "ARMS base + independent, tau 0.5"):
        assert row in table


def test_loaded_router_scores_as_it_did_right_after_training(tree: Tree, whole: Whole, tmp_path: Path) -> None:
    router, queries, rows = whole.fitted.router, whole.run.queries, torch.arange(whole.run.queries.height)
    inputs = frozen(whole.run.inputs)
    direct = router.confidences(inputs.question.rows(rows).numpy(), inputs.picture.rows(rows).numpy())
    save_router(router, tmp_path)
    loaded = load_router(tmp_path)
    np.testing.assert_array_equal(loaded.confidences(*router_vectors(loaded, queries)), direct)
    staged = load_router(Path("models/train_base"))  # the stage trained the same from the same seed
    np.testing.assert_array_equal(staged.confidences(*router_vectors(staged, queries)), direct)


def test_trained_encoders_give_other_vectors_than_the_kept_ones(tree: Tree) -> None:
    queries, router = load_queries(), load_router(Path("models/train_base"))
    kept = frozen(start(replace(SETTINGS, trainable_encoders=())).inputs)
    question, picture = router_vectors(router, queries)
    rows = torch.arange(queries.height)
    num_surface = kept.question.width - 384
    np.testing.assert_array_equal(question[:, :num_surface], kept.question.rows(rows)[:, :num_surface].numpy())
    assert np.abs(question[:, num_surface:] - kept.question.rows(rows)[:, num_surface:].numpy()).max() > 0.01
    assert np.abs(picture - kept.picture.rows(rows).numpy()).max() > 0.01


def test_sources_of_a_trained_router_encode_profiles_with_its_own_text_encoder(tree: Tree) -> None:
    router = load_router(Path("models/train_base"))
    inputs = frozen(trained_inputs(router, load_queries().head(1), router.config.profiles))
    vectors = inputs.profiles.rows(torch.arange(len(router.config.vlms)))
    torch.testing.assert_close(vectors, router.profile_vectors, atol=1e-5, rtol=1e-5)


class StopsAt:
    """Passes rows on, and is where a person's Ctrl-C arrives at the n-th call."""

    def __init__(self, source: Source, call: int) -> None:
        self._source, self._left = source, call
        self.width = source.width

    def __len__(self) -> int:
        return len(self._source)

    def modules(self) -> list[nn.Module]:
        return self._source.modules()

    def rows(self, index: Tensor) -> Tensor:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._source.rows(index)


@pytest.mark.parametrize("call", [3, 7])  # 4 batches an epoch, then the validation rows: in epoch 1 and in epoch 2
def test_stopped_and_resumed_run_ends_with_the_same_weights(
    tree: Tree, whole: Whole, tmp_path: Path, call: int
) -> None:
    settings = replace(SETTINGS, training=replace(SETTINGS.training, checkpoint_every_s=0.0))
    run = start()
    assert (len(run.data.train) + 15) // 16 == 4
    stopped = replace(run, data=replace(run.data, picture=StopsAt(run.data.picture, call)))
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, settings, checkpoints=tmp_path)
    assert list(tmp_path.iterdir())
    resumed = fit(start(), settings, checkpoints=tmp_path)
    assert resumed.histories == whole.fitted.histories
    assert_same_weights(resumed.router.members[0], whole.fitted.router.members[0])
    assert set(resumed.router.encoder_modules) == {"minilm", "efficientnet"}
    for name, module in whole.fitted.router.encoder_modules.items():
        assert_same_weights(resumed.router.encoder_modules[name], module)
