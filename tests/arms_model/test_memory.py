"""The memory by hand; far neighbours leave the networks alone; nothing depends on a block's size."""

import numpy as np
import pytest

from arms_model import memory
from arms_model.memory import Kernel, Memory, MemorySettings, fit_memory, joined_memory

NAN = np.nan


def unit(*rows: list[float]) -> np.ndarray:
    values = np.asarray(rows, dtype=np.float32)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def make_memory(keys: np.ndarray, residuals: list[list[float]], **changes: object) -> Memory:
    """A memory whose labels play no part unless `changes` give the networks less than the whole weight."""
    values = np.asarray(residuals, dtype=np.float16)
    parts = {
        "labels": np.full_like(values, NAN),
        "means": np.full(values.shape[1], 0.5, dtype=np.float32),
        "residual_kernel": Kernel(temperature=0.5, prior=1.0),
        "label_kernel": Kernel(temperature=0.5, prior=1.0),
        "network_weight": 1.0,
    }
    return Memory(keys=keys, residuals=values, **(parts | changes))


def test_residuals_by_hand() -> None:
    # One neighbour at similarity 1 (weight 1), one at 0 (weight exp(-1 / 0.5) = 0.135335). Prior 1.
    # VLM 0: (0.5 * 1 - 0.2 * 0.135335) / (1 + 1.135335) = 0.221484; VLM 1 was asked the far one only:
    # 0.4 * 0.135335 / (1 + 0.135335) = 0.047681.
    kept = make_memory(unit([1, 0], [0, 1]), [[0.5, NAN], [-0.2, 0.4]])
    moved = kept.corrected(np.asarray([[0.3, 0.3]]), unit([1, 0]))
    np.testing.assert_allclose(moved, [[0.3 + 0.221484, 0.3 + 0.047681]], atol=2e-4)


def test_local_means_by_hand() -> None:
    # The same neighbours; VLM 0 was right on the near one and wrong on the far one, VLM 1 right on the far one.
    # Local means with prior 1 and overall means .5 and .2: (1 + .5) / (1 + 1.135335) = .702466 and
    # (.135335 + .2) / (.135335 + 1) = .295362. A quarter of the networks' .4: .25 * .4 + .75 * local.
    kept = make_memory(
        unit([1, 0], [0, 1]),
        [[0.0, NAN], [0.0, 0.0]],
        labels=np.asarray([[1, NAN], [0, 1]], dtype=np.float16),
        means=np.asarray([0.5, 0.2], dtype=np.float32),
        network_weight=0.25,
    )
    mixed = kept.corrected(np.asarray([[0.4, 0.4]]), unit([1, 0]))
    np.testing.assert_allclose(mixed, [[0.1 + 0.75 * 0.702466, 0.1 + 0.75 * 0.295362]], atol=2e-4)


def test_far_neighbours_leave_the_expectation_alone() -> None:
    kept = make_memory(unit([0, 1], [-1, 0]), [[0.9], [0.9]], residual_kernel=Kernel(temperature=0.02, prior=1.0))
    np.testing.assert_allclose(kept.corrected(np.asarray([[0.4]]), unit([1, 0])), [[0.4]], atol=1e-6)


def test_confidences_stay_inside_zero_and_one() -> None:
    kept = make_memory(unit([1, 0]), [[1.0]], residual_kernel=Kernel(temperature=0.1, prior=0.01))
    assert 0.9 < kept.corrected(np.asarray([[0.9]]), unit([1, 0]))[0, 0] < 1


def test_memory_asked_for_no_query_gives_none() -> None:
    kept = make_memory(unit([1, 0]), [[1.0]])
    assert kept.corrected(np.zeros((0, 1)), np.zeros((0, 2), dtype=np.float16)).shape == (0, 1)


def test_fit_corrects_by_other_groups_only() -> None:
    # Two queries with the same key in one group, none elsewhere: nothing may move.
    expected = np.asarray([[0.5], [0.5]])
    _, corrected = fit_memory(
        unit([1, 0], [1, 0]),
        expected,
        np.asarray([[1.0], [1.0]], dtype=np.float32),
        np.asarray(["same", "same"]),
        settings=MemorySettings(),
    )
    np.testing.assert_allclose(corrected, expected, atol=1e-6)


def templates() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four templates; on each one VLM is always right, which the expectation does not know."""
    random = np.random.default_rng(0)
    template = np.arange(80) % 4
    keys = unit(*(np.eye(4)[template] + random.normal(0, 0.05, (80, 4))).tolist())
    correct = np.stack([template % 2 == 0, template % 2 == 1], axis=1).astype(np.float32)
    return keys, np.full((80, 2), 0.5), correct, np.asarray([f"g{row}" for row in range(80)])


def test_fit_learns_what_templates_share() -> None:
    keys, expected, correct, groups = templates()
    kept, corrected = fit_memory(keys, expected, correct, groups, settings=MemorySettings())
    assert ((corrected > 0.5) == (correct == 1)).all()
    moved = kept.corrected(np.full((1, 2), 0.5), unit([1, 0, 0, 0]))
    assert moved[0, 0] > 0.8 and moved[0, 1] < 0.2


def test_fit_gives_local_means_their_share_where_the_networks_see_nothing() -> None:
    keys, expected, correct, groups = templates()
    noise = np.random.default_rng(1).uniform(-0.4, 0.4, expected.shape)
    kept, corrected = fit_memory(keys, expected + noise, correct, groups, settings=MemorySettings())
    alone, without = fit_memory(
        keys, expected + noise, correct, groups, settings=MemorySettings(network_weights=(1.0,))
    )
    assert kept.network_weight < 1 == alone.network_weight
    assert np.square(corrected - correct).mean() < np.square(without - correct).mean()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, expected, correct, groups = templates()
    whole, corrected = fit_memory(keys, expected, correct, groups, settings=MemorySettings())
    monkeypatch.setattr(memory, "_ROWS_AT_ONCE", 7)
    parts, in_parts = fit_memory(keys, expected, correct, groups, settings=MemorySettings())
    assert whole.described() == parts.described()
    np.testing.assert_allclose(corrected, in_parts, atol=1e-5)


def test_joined_memory_puts_old_values_into_their_new_columns() -> None:
    old = make_memory(
        unit([1, 0]), [[0.5]], labels=np.asarray([[1]], dtype=np.float16), means=np.asarray([0.9], dtype=np.float32)
    )
    new = make_memory(unit([0, 1]), [[NAN, -0.5]], labels=np.asarray([[NAN, 0]], dtype=np.float16), network_weight=0.5)
    joint = joined_memory(old, new, old_columns=np.asarray([0]))
    np.testing.assert_array_equal(joint.residuals, np.asarray([[0.5, NAN], [NAN, -0.5]], dtype=np.float16))
    np.testing.assert_array_equal(joint.labels, np.asarray([[1, NAN], [NAN, 0]], dtype=np.float16))
    np.testing.assert_allclose(joint.means, [0.9, 0.5])
    assert joint.described() == old.described()


def test_settings_refuse_what_cannot_be_run() -> None:
    with pytest.raises(ValueError, match="temperatures must be numbers above 0"):
        MemorySettings(temperatures=(0.0,))
    with pytest.raises(ValueError, match="network_weights must lie in"):
        MemorySettings(network_weights=(1.5,))
