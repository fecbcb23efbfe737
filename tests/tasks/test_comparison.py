"""What stands beside the router: which labels count, what baselines see, and what they are fitted on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from arms_model.baselines.protocol import Queries
from arms_model.errors import ConfigError
from tasks.common.comparison import BASELINES, BEST_SINGLE, fit_predict, make_queries, methods_of, scored_labels
from tasks.common.tables import SCHEMAS, write_table

NAN = np.nan
QUERIES = pl.DataFrame(
    {
        "query_id": ["q1", "q2"], "benchmark": ["one", "two"], "task": ["count", "find"],
        "answer_type": ["free", "choice"], "image_group": ["g1", "g2"], "template": ["t1", "t1"],
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of two queries: a text encoder's, surface numbers, pixels."""
    monkeypatch.chdir(tmp_path)
    index = {"query_id": ["q1", "q2"], "question_row": [0, 1], "picture_row": [0, 0]}
    write_table(Path("embed/index.parquet"), pl.DataFrame(index, schema=SCHEMAS["embed_index"]), "embed_index")
    save_file({"words": np.float32([[1, 2], [3, 4]]), "surface": np.float32([[9], [8]])}, "embed/questions.safetensors")
    save_file({"pixels": np.float32([[7]])}, "embed/pictures.safetensors")
    kinds = {"words": ("minilm", "question"), "surface": ("surface", "question"), "pixels": ("pixels", "picture")}
    described = {
        name: {"modality": modality, "identity": name, "width": 1, "settings": {"kind": kind}}
        for name, (kind, modality) in kinds.items()
    }
    Path("embed/encoders.json").write_text(json.dumps(described))


def write_collected(pool: str, *rows: tuple[str, str, bool | None]) -> None:
    filler: dict[str, Any] = dict.fromkeys(SCHEMAS["collect"])
    frame = [{**filler, "query_id": query, "vlm": vlm, "imported_correct": given} for query, vlm, given in rows]
    write_table(Path(f"collect/{pool}.parquet"), pl.DataFrame(frame, schema=SCHEMAS["collect"]), "collect")


def test_the_sources_label_counts_before_ours_and_never_where_we_have_none() -> None:
    write_collected("base", ("q1", "a", True), ("q2", "a", None))
    write_collected("new", ("q1", "b", True), ("q2", "b", False))
    own = np.array([[0, NAN], [1, 1]], dtype=np.float32)
    # q1/a: theirs over ours; q1/b: no label of ours, so not asked; q2/a: theirs is missing, ours; q2/b: theirs.
    np.testing.assert_array_equal(scored_labels(QUERIES, ["a", "b"], own), [[1, NAN], [1, 0]])


def test_surface_numbers_stand_apart_from_the_question_vectors() -> None:
    seen = make_queries(
        QUERIES, question_encoders=["words", "surface"], picture_encoders=["pixels"], group_by="template"
    )
    np.testing.assert_array_equal(seen.question, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(seen.surface, [[9], [8]])
    np.testing.assert_array_equal(seen.picture, [[7], [7]])
    assert seen.group.tolist() == ["t1", "t1"]
    assert (seen.task.tolist(), seen.answer_type.tolist()) == (["count", "find"], ["free", "choice"])


def test_surface_numbers_alone_are_the_question_vectors() -> None:
    seen = make_queries(QUERIES, question_encoders=["surface"], picture_encoders=["pixels"], group_by="image_group")
    np.testing.assert_array_equal(seen.question, [[9], [8]])
    assert seen.surface is None
    assert seen.group.tolist() == ["g1", "g2"]


def test_picture_encoder_among_question_encoders_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="'pixels' encodes pictures"):
        make_queries(QUERIES, question_encoders=["pixels"], picture_encoders=["pixels"], group_by="template")


def made_up(count: int) -> tuple[Queries, np.ndarray]:
    generator = np.random.default_rng(0)
    queries = Queries(
        question=generator.normal(size=(count, 3)).astype(np.float32),
        picture=generator.normal(size=(count, 2)).astype(np.float32),
        benchmark=np.full(count, "one"),
        task=np.full(count, "t"),
        answer_type=np.full(count, "free"),
        group=np.array([f"g{number}" for number in range(count)]),
    )
    return queries, generator.integers(0, 2, size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_fitted_on_the_training_rows_alone(name: str) -> None:
    queries, correct = made_up(40)
    train, test = np.arange(30), np.arange(30, 40)
    turned = correct.copy()
    turned[test] = 1 - turned[test]
    plain = fit_predict([name], queries, correct, train=train, test=test)[name]
    assert plain.shape == (10, 2)
    np.testing.assert_array_equal(fit_predict([name], queries, turned, train=train, test=test)[name], plain)


def test_predictions_are_of_the_test_rows_in_their_order() -> None:
    queries, _ = made_up(4)
    correct = np.array([[1, 0], [1, 1], [0, 0], [0, 0]], dtype=np.float32)
    scores = fit_predict([BEST_SINGLE], queries, correct, train=np.array([0, 1]), test=np.array([3, 2]))
    np.testing.assert_array_equal(scores[BEST_SINGLE], [[1, 0.5], [1, 0.5]])


def test_methods_choose_the_most_confident_candidate() -> None:
    scores = {"one": np.array([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]])}
    (method,) = methods_of(scores, np.array([[True, True], [True, False], [False, False]]))
    assert (method.name, method.kind) == ("one", "baseline")
    assert method.chosen is not None
    assert method.chosen.tolist() == [[1, 0, -1]]
