"""Fitting, storing and loading a router; incremental training starts from the base router's weights."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arms_model.calibration import CalibrationSettings
from arms_model.encoders.build import EncoderSettings
from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.fitting import fit_router
from arms_model.folds import inner_folds
from arms_model.heads import HeadSettings
from arms_model.memory import MemorySettings
from arms_model.network import NetworkSettings
from arms_model.router import Router, RouterConfig, extended_network
from arms_model.sources import KeptVectors
from arms_model.storage import load_router, save_router
from arms_model.training import TrainingData, TrainingSettings, predict

NAN = float("nan")
TRAINING = TrainingSettings(epochs=3, batch_size=16, batching="by_query", learning_rate=3e-3, patience=2)


def make_config(vlms: tuple[str, ...] = ("a", "c"), *, num_members: int = 2, kind: str = "dot") -> RouterConfig:
    return RouterConfig(
        network=NetworkSettings(num_experts=2, standardise=True, picture_components=2, head=HeadSettings(kind=kind)),
        num_members=num_members,
        question_encoders={"surface": EncoderSettings(kind="surface")},
        picture_encoders={"pixels": EncoderSettings(kind="pixels")},
        profile_encoder="surface",
        profile="sentence",
        question_width=6,
        picture_width=4,
        profile_width=5,
        vlms=vlms,
        profiles=tuple(f"{vlm}." for vlm in vlms),
    )


def make_data(num_vlms: int = 2) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    question = torch.randn(80, 6, generator=generator)
    correct = torch.stack([(question[:, k % 6] > 0).float() for k in range(num_vlms)], dim=1)
    return TrainingData(
        question=KeptVectors(question),
        picture=KeptVectors(torch.randn(80, 4, generator=generator)),
        profiles=KeptVectors(torch.randn(num_vlms, 5, generator=generator)),
        correct=correct,
        train=torch.arange(60),
        validation=torch.arange(60, 80),
    )


def fit(config: RouterConfig, data: TrainingData, **more: object) -> Router:
    return fit_router(
        config, data, training=TRAINING, calibration=CalibrationSettings(min_labels=5), seed=0, **more
    ).router


def vectors(data: TrainingData) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.arange(80)
    return data.question.rows(rows).numpy(), data.picture.rows(rows).numpy()


def test_stored_and_loaded_router_gives_the_same_confidences(tmp_path: Path) -> None:
    data = make_data()
    router = fit(make_config(), data)
    save_router(router, tmp_path)
    loaded = load_router(tmp_path)
    assert loaded.config == router.config
    np.testing.assert_array_equal(loaded.confidences(*vectors(data)), router.confidences(*vectors(data)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_encoders_of_a_loaded_router_stand_in_the_order_they_were_given(tmp_path: Path) -> None:
    # their vectors stand side by side in this order
    encoders = {name: EncoderSettings(kind="surface") for name in ("surface", "minilm", "numbers")}
    save_router(fit(dataclasses.replace(make_config(), question_encoders=encoders), make_data()), tmp_path)
    assert list(load_router(tmp_path).config.question_encoders) == ["surface", "minilm", "numbers"]


def test_same_router_is_stored_as_the_same_bytes(tmp_path: Path) -> None:
    stored = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_router(fit(make_config(), make_data()), tmp_path / name)
        stored.append([(tmp_path / name / file).read_bytes() for file in ("config.json", "weights.safetensors")])
    assert stored[0] == stored[1]


def test_confidences_are_the_calibrated_sigmoid_of_the_mean_logit() -> None:
    data = make_data()
    router = fit(make_config(), data)
    q, v = (torch.from_numpy(part) for part in vectors(data))
    with torch.no_grad():
        mean = sum(member(q, v, router.profile_vectors) for member in router.members) / 2
    scaled = mean.numpy() * router.calibration.scale + router.calibration.bias
    np.testing.assert_allclose(router.confidences(*vectors(data)), 1 / (1 + np.exp(-scaled)), atol=1e-6)


def test_vectors_of_another_width_are_refused() -> None:
    data = make_data()
    router = fit(make_config(), data)
    question, picture = vectors(data)
    with pytest.raises(DataError, match=r"question vectors are \(80, 5\), this router takes \(N, 6\)"):
        router.confidences(question[:, :5], picture)


def test_router_without_queries_gives_an_empty_matrix() -> None:
    router = fit(make_config(), make_data())
    empty = router.confidences(np.zeros((0, 6), dtype=np.float32), np.zeros((0, 4), dtype=np.float32))
    assert empty.shape == (0, 2)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    save_router(fit(make_config(), make_data()), tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    weights["profile_vectors"] += 1
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(StorageError, match="mixed up or damaged"):
        load_router(tmp_path)


def test_router_of_another_format_is_refused(tmp_path: Path) -> None:
    save_router(fit(make_config(), make_data()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(DataError, match="format 99, expected 1"):
        load_router(tmp_path)


def test_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    save_router(fit(make_config(), make_data()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["router"]["network"]["num_experts"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match="does not fit its config"):
        load_router(tmp_path)


def test_missing_router_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no router in .*config\.json is missing"):
        load_router(tmp_path)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_extended_network_scores_old_vlms_as_before(kind: str) -> None:
    data = make_data()
    base = fit(make_config(kind=kind), data)
    config = make_config(("a", "b", "c"), kind=kind)
    extended = extended_network(base.members[0], config, base.config.vlms).eval()
    profiles = torch.cat([base.profile_vectors[:1], torch.randn(1, 5), base.profile_vectors[1:]])
    q, v = (torch.from_numpy(part) for part in vectors(data))
    with torch.no_grad():
        torch.testing.assert_close(extended(q, v, profiles)[:, [0, 2]], base.members[0](q, v, base.profile_vectors))


def test_incremental_training_leaves_old_rows_and_frozen_groups_alone() -> None:
    data = make_data(3)
    base = fit(make_config(), make_data())
    shown = data.correct.clone()
    shown[:, [0, 2]] = NAN  # only the new VLM b
    training = dataclasses.replace(TRAINING, moving=("head",))
    config = make_config(("a", "b", "c"))
    fitted = fit_router(
        config,
        dataclasses.replace(data, correct=shown),
        training=training,
        calibration=CalibrationSettings(),
        seed=0,
        start=base,
    )
    for old, new in zip(base.members, fitted.router.members, strict=True):
        assert torch.equal(old.head.vlm_bias, new.head.vlm_bias[[0, 2]])
        assert torch.equal(old.head.vlm_vectors, new.head.vlm_vectors[[0, 2]])
        assert torch.equal(old.experts.inner, new.experts.inner)
        assert torch.equal(old.gate.linear.weight, new.gate.linear.weight)
        assert not torch.equal(old.head.project.weight, new.head.project.weight)


def test_new_vlm_without_training_labels_starts_at_the_others_mean() -> None:
    data = make_data(3)
    shown = data.correct.clone()
    shown[:60, 1] = NAN
    data = dataclasses.replace(data, correct=shown)
    router = fit_router(
        make_config(("a", "b", "c"), num_members=1),
        data,
        training=dataclasses.replace(TRAINING, moving=("gate",)),
        calibration=CalibrationSettings(kind="none"),
        seed=0,
    ).router
    mean = np.nanmean(shown[:60].numpy())
    assert router.members[0].head.vlm_bias[1].item() == pytest.approx(math.log(mean / (1 - mean)), abs=1e-5)


def test_fit_stopped_in_its_second_member_goes_on_and_gives_the_same_router(tmp_path: Path) -> None:
    data = make_data()
    training = dataclasses.replace(TRAINING, checkpoint_every_s=0.0)
    calibration = CalibrationSettings(min_labels=5)
    whole = fit_router(make_config(), data, training=training, calibration=calibration, seed=0)

    stopping = dataclasses.replace(data, question=StopAfter(data.question, batches=13))
    with pytest.raises(KeyboardInterrupt):
        fit_router(make_config(), stopping, training=training, calibration=calibration, seed=0, checkpoints=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member0.safetensors", "member1.safetensors"]

    counting = StopAfter(data.question, batches=10**6)
    resumed = fit_router(
        make_config(),
        dataclasses.replace(data, question=counting),
        training=training,
        calibration=calibration,
        seed=0,
        checkpoints=tmp_path,
    )
    assert counting.done < 3 * 4  # of the second member's three epochs of four batches, some were done
    for one, other in zip(whole.router.members, resumed.router.members, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    np.testing.assert_array_equal(whole.logits, resumed.logits)


class StopAfter(KeptVectors):
    """Vectors that stand for Ctrl-C: after so many training batches (a member has twelve) asking is interrupted."""

    def __init__(self, source: KeptVectors, *, batches: int) -> None:
        super().__init__(source.rows(torch.arange(len(source))))
        self.batches = batches
        self.done = 0

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        if len(index) <= 16:  # a batch of the loop; fitting and validation ask for more
            if self.done == self.batches:
                raise KeyboardInterrupt
            self.done += 1
        return super().rows(index)


def test_checkpoint_from_another_configuration_is_refused_by_what_differs(tmp_path: Path) -> None:
    data = make_data()
    other = dataclasses.replace(TRAINING, learning_rate=1e-4)
    fit_router(make_config(), data, training=other, calibration=CalibrationSettings(), seed=0, checkpoints=tmp_path)
    with pytest.raises(ConfigError, match=r"training\.learning_rate: checkpoint '0\.0001', now '0\.003'") as caught:
        fit(make_config(), data, checkpoints=tmp_path)
    assert caught.value.exit_code == 2


def test_checkpoint_of_other_vectors_is_refused(tmp_path: Path) -> None:
    data = make_data()
    fit(make_config(), data, checkpoints=tmp_path)
    moved = KeptVectors(data.picture.rows(torch.arange(80)) + 1)
    with pytest.raises(ConfigError, match="data: checkpoint"):
        fit(make_config(), dataclasses.replace(data, picture=moved), checkpoints=tmp_path)


def bagged(num_members: int = 3) -> tuple[RouterConfig, TrainingData]:
    data = dataclasses.replace(make_data(), groups=np.asarray([f"g{row // 2}" for row in range(80)]))
    return dataclasses.replace(make_config(num_members=num_members), bagging=True), data


def test_bagging_scores_every_row_by_a_member_that_did_not_see_it() -> None:
    config, data = bagged()
    fitted = fit_router(config, data, training=TRAINING, calibration=CalibrationSettings(kind="none"), seed=0)
    assert fitted.rows.tolist() == list(range(80))
    folds = inner_folds(data.groups, salt="members", num_folds=3)
    for number, member in enumerate(fitted.router.members):
        rows = torch.from_numpy(np.flatnonzero(folds == number))
        np.testing.assert_allclose(fitted.logits[rows.numpy()], predict(member, data, rows).numpy(), atol=1e-6)


def test_bagging_needs_groups() -> None:
    config, data = bagged()
    with pytest.raises(ConfigError, match="bagging needs the queries' groups"):
        fit(config, dataclasses.replace(data, groups=None))


def test_memory_without_bagging_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory needs bagging"):
        fit(make_config(), make_data(), memory=MemorySettings())


def test_router_with_a_memory_is_stored_and_scores_as_before(tmp_path: Path) -> None:
    config, data = bagged()
    router = fit(config, data, memory=MemorySettings())
    save_router(router, tmp_path)
    loaded = load_router(tmp_path)
    assert loaded.memory.described() == router.memory.described()
    # Equal up to float rounding: sums over arrays that lie otherwise in memory.
    np.testing.assert_allclose(loaded.confidences(*vectors(data)), router.confidences(*vectors(data)), rtol=1e-5)


def test_incremental_training_keeps_the_old_memory_and_calibration() -> None:
    config, data = bagged()
    base = fit(config, data, memory=MemorySettings())
    shown = make_data(3).correct.clone()
    shown[:, [0, 2]] = NAN
    grown = dataclasses.replace(config, vlms=("a", "b", "c"), profiles=("a.", "b.", "c."))
    data = dataclasses.replace(make_data(3), correct=shown, groups=data.groups)
    router = fit(grown, data, memory=MemorySettings(), start=base)
    assert len(router.memory.keys) == 160
    np.testing.assert_array_equal(router.memory.residuals[:80, [0, 2]], base.memory.residuals)
    assert np.isnan(router.memory.residuals[:80, 1]).all() and np.isnan(router.memory.residuals[80:, [0, 2]]).all()
    np.testing.assert_array_equal(router.calibration.scale[[0, 2]], base.calibration.scale)
    assert router.calibration.is_own.tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vlms": ("b", "a"), "profiles": ("b.", "a.")}, "sorted names without repeats"),
        ({"profiles": ("a.",)}, "need as many profiles"),
        ({"num_members": 0}, "num_members must be at least 1"),
    ],
)
def test_config_refuses_what_cannot_be_built(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(make_config(), **changes)
