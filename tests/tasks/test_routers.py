"""What the train stages share: which rows are trained on, what settings are refused, whose vectors a router takes."""

import json

import numpy as np
import pytest

from arms_model.errors import ConfigError
from arms_model.settings import parse
from tasks.common.dataset import Labels
from tasks.common.routers import RouterSettings, training_rows, validation_rows
from tasks.train_incremental import IncrementalSettings, incremental_labels

NAN = np.nan
# Rows: answered, unanswered, not asked, answered by one of two.
CORRECT = np.array([[1, 1], [0, 0], [NAN, NAN], [NAN, 1]] * 2, dtype=np.float32)
SPLITS = np.array(["train"] * 4 + ["validation"] * 4)
GOOD = {"question_encoders": ["surface"], "picture_encoders": ["pixels"], "profile_encoder": "surface"}


def test_training_rows_are_labelled_queries_of_split_train() -> None:
    assert training_rows(CORRECT, SPLITS, drop_unanswered=False).tolist() == [0, 1, 3]


def test_drop_unanswered_leaves_out_what_no_vlm_answers() -> None:
    assert training_rows(CORRECT, SPLITS, drop_unanswered=True).tolist() == [0, 3]


def test_validation_rows_are_never_filtered() -> None:
    assert validation_rows(CORRECT, SPLITS).tolist() == [4, 5, 7]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trainable_encoders": ["minilm"]}, "trainable_encoders names 'minilm'"),
        ({"question_encoders": ["surface", "surface"]}, "name one twice"),
        ({"profile_encoder": "minilm"}, "profile_encoder 'minilm' must be one of question_encoders"),
        ({"memory": {}}, "memory needs bagging: true"),
        ({"memory": {}, "bagging": True, "num_members": 3}, "network.standardise: true"),
        ({"bagging": True}, "bagging needs num_members of 2 or more"),
        ({"training": {"epoch": 3}}, "train_base.training.epoch: unknown key; did you mean 'epochs'?"),
        ({"network": {"head": {"kind": "cosin"}}}, "train_base.network.head.kind"),
        ({"training": {"epochs": "7"}}, "train_base.training.epochs"),
    ],
)
def test_router_settings_are_refused_by_what_is_wrong(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(RouterSettings, GOOD | changes, "train_base")
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"replay_fraction": 1.5}, "replay_fraction must lie in [0, 1]"),
        ({"training": {"moving": ["question_encoder", "head"]}}, "must leave the encoders out"),
    ],
)
def test_incremental_settings_are_refused_by_what_is_wrong(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(IncrementalSettings, changes, "train_incremental")
    assert text in str(caught.value)


def both_pools() -> tuple[Labels, list[str]]:
    labels = Labels(
        vlms=("a", "b", "c"),
        profiles=("a.", "b.", "c."),
        pools=("base", "new", "base"),
        correct=np.ones((400, 3), dtype=np.float32),
    )
    return labels, [f"q{number}" for number in range(400)]


def test_incremental_training_is_shown_no_base_label_without_replay() -> None:
    labels, query_ids = both_pools()
    shown = incremental_labels(labels, query_ids, replay_fraction=0.0)
    assert np.isnan(shown[:, [0, 2]]).all() and (shown[:, 1] == 1).all()
    assert (labels.correct == 1).all()


def test_a_larger_replay_fraction_keeps_the_smaller_ones_queries() -> None:
    labels, query_ids = both_pools()
    some, more = (~np.isnan(incremental_labels(labels, query_ids, replay_fraction=share)[:, 0]) for share in (0.2, 0.5))
    assert 50 < some.sum() < 110 and 160 < more.sum() < 240
    assert (more | ~some).all()


def test_router_refuses_vectors_of_another_encoder(copied_tree) -> None:
    path = copied_tree.folder / "embed/encoders.json"
    described = json.loads(path.read_text())
    described["surface"]["identity"] = "another version"
    path.unlink()  # DVC may have linked it to its cache
    path.write_text(json.dumps(described))
    result = copied_tree.stage("cascade_eval")
    assert result.returncode == 1
    assert "encoder 'surface' is now another version, but this router was trained on" in result.stderr
    assert "Traceback" not in result.stderr
