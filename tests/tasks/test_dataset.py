"""Sealed tables as arrays, on three queries and two VLMs; every broken table is refused in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from arms_model.errors import ArmsError, ConfigError, DataError
from tasks.common.dataset import (
    label_matrix,
    load_encoders,
    load_labels,
    load_queries,
    load_splits,
    load_vectors,
)
from tasks.common.tables import SCHEMAS, write_table

QUERIES = pl.DataFrame({"query_id": ["q1", "q2", "q3"]})
NAN = np.nan
ENCODERS: dict[str, Any] = {
    "surface": {"modality": "question", "identity": "s1", "width": 2, "settings": {"kind": "surface"}},
    "words": {"modality": "question", "identity": "m1", "width": 1, "settings": {"kind": "minilm"}},
    "pixels": {"modality": "picture", "identity": "p1", "width": 2, "settings": {"kind": "pixels"}},
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with vectors of three queries, two of which share a picture."""
    monkeypatch.chdir(tmp_path)
    index = {"query_id": ["q3", "q1", "q2"], "question_row": [2, 0, 1], "picture_row": [0, 1, 0]}
    write_table(Path("embed/index.parquet"), pl.DataFrame(index, schema=SCHEMAS["embed_index"]), "embed_index")
    questions = {"surface": np.float32([[1, 2], [3, 4], [5, 6]]), "words": np.float32([[0.1], [0.2], [0.3]])}
    save_file(questions, "embed/questions.safetensors")
    save_file({"pixels": np.float32([[7, 7], [8, 8]])}, "embed/pictures.safetensors")
    write_encoders(ENCODERS)
    return tmp_path


def write_encoders(described: Any) -> None:
    Path("embed/encoders.json").write_text(json.dumps(described))


def labels(*rows: tuple[str, str, bool | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"query_id": pl.String, "vlm": pl.String, "correct": pl.Boolean}, orient="row")


def write_pool(pool: str, vlms: list[str], *rows: tuple[str, str, bool]) -> None:
    profiles = [dict.fromkeys(SCHEMAS["profiles"], "x") | {"vlm": vlm, "pool": pool, "params_b": 1.0} for vlm in vlms]
    write_table(Path(f"profiles/{pool}.parquet"), pl.DataFrame(profiles, schema=SCHEMAS["profiles"]), "profiles")
    frame = labels(*rows).with_columns(predicted=pl.lit(None, pl.String))
    write_table(Path(f"label/{pool}.parquet"), frame, "label")


def test_label_matrix_keeps_not_asked_apart_from_wrong() -> None:
    frame = labels(("q3", "a", True), ("q1", "b", False), ("q2", "a", None))
    np.testing.assert_array_equal(label_matrix(QUERIES, frame, ("a", "b")), [[NAN, 0], [NAN, NAN], [1, NAN]])


@pytest.mark.parametrize("row", [("q9", "a", True), ("q1", "z", True)])
def test_label_of_a_stranger_is_refused_by_name(row: tuple[str, str, bool]) -> None:
    with pytest.raises(
        DataError, match=rf"1 labels are of an unknown query or VLM \(first: \[\('{row[0]}', '{row[1]}'"
    ):
        label_matrix(QUERIES, labels(("q1", "a", True), row), ("a", "b"))


def test_labels_of_both_pools_have_columns_sorted_by_vlm() -> None:
    write_pool("base", ["c", "a"], ("q1", "c", True), ("q1", "a", False))
    write_pool("new", ["b"], ("q2", "b", True))
    both = load_labels(QUERIES, ["base", "new"])
    assert (both.vlms, both.pools) == (("a", "b", "c"), ("base", "new", "base"))
    np.testing.assert_array_equal(both.correct, [[0, NAN, 1], [NAN, 1, NAN], [NAN, NAN, NAN]])
    assert load_labels(QUERIES, ["new"]).vlms == ("b",)


def test_queries_come_sorted_by_their_identity() -> None:
    rows = [dict.fromkeys(SCHEMAS["queries"], "x") | {"query_id": name, "choices": None} for name in ("q2", "q1")]
    Path("queries").mkdir()
    pl.DataFrame(rows, schema=SCHEMAS["queries"]).write_parquet("queries/queries.parquet")
    assert load_queries()["query_id"].to_list() == ["q1", "q2"]


def test_splits_come_in_the_queries_order_and_none_may_lack() -> None:
    frame = pl.DataFrame({"query_id": ["q3", "q1", "q2"], "split": ["test_id", "train", "gate"]})
    write_table(Path("split/split.parquet"), frame, "split")
    assert load_splits(QUERIES).tolist() == ["train", "gate", "test_id"]
    write_table(Path("split/split.parquet"), frame.head(2), "split")
    with pytest.raises(DataError, match=r"1 queries have no split \(first: \['q2'\]\); run stage `split`"):
        load_splits(QUERIES)


def test_vectors_stand_side_by_side_in_the_order_of_names_and_queries() -> None:
    np.testing.assert_allclose(load_vectors(QUERIES, "question", ["words", "surface"])[2], [0.3, 5, 6])
    np.testing.assert_allclose(load_vectors(QUERIES, "picture", ["pixels"]), [[8, 8], [7, 7], [7, 7]])
    assert load_vectors(QUERIES, "picture", []).shape == (3, 0)


def test_settings_of_encoders_come_back() -> None:
    found = load_encoders(["pixels", "surface"])
    assert {name: settings.kind for name, settings in found.items()} == {"pixels": "pixels", "surface": "surface"}


@pytest.mark.parametrize(
    ("modality", "name", "words"),
    [
        ("question", "pixels", "encoder 'pixels' encodes pictures, but stands where one for questions is expected"),
        ("picture", "surface", "encoder 'surface' encodes questions, .* expected; known are: pixels"),
        ("question", "surfaec", "encoder 'surfaec' does not stand in params.yaml: embed; did you mean 'surface'"),
    ],
)
def test_encoder_in_the_wrong_place_is_the_users_mistake(modality: str, name: str, words: str) -> None:
    for ask in (load_encoders, lambda names, kind: load_vectors(QUERIES, kind, names)):
        with pytest.raises(ConfigError, match=words):
            ask([name], modality)


@pytest.mark.parametrize(
    "described",
    [
        [],
        {"surface": {"kind": "surface"}},
        {"surface": {name: value for name, value in ENCODERS["surface"].items() if name != "settings"}},
        {"surface": ENCODERS["surface"] | {"modality": "sound"}},
        {"surface": ENCODERS["surface"] | {"settings": {"kind": "surface", "colour": "red"}}},
    ],
)
def test_broken_encoders_json_is_data_that_embed_writes_again(described: Any) -> None:
    write_encoders(described)
    with pytest.raises(DataError, match=r"encoders\.json is not as stage `embed` writes it; run `dvc repro --force"):
        load_encoders(["surface"])


def spoil_column() -> None:
    pl.read_parquet("embed/index.parquet").drop("picture_row").write_parquet("embed/index.parquet")


def spoil_rows() -> None:
    pl.read_parquet("embed/index.parquet").head(2).write_parquet("embed/index.parquet")


def spoil_numbers() -> None:
    frame = pl.read_parquet("embed/index.parquet").with_columns(pl.col("picture_row") + 5)
    frame.write_parquet("embed/index.parquet")


def spoil_vectors() -> None:
    save_file({"pixels": np.float32([[7, NAN], [8, 8]])}, "embed/pictures.safetensors")


def spoil_file() -> None:
    Path("embed/pictures.safetensors").write_bytes(b"cut")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_column, "column 'picture_row' is missing; table 'embed_index' has query_id, question_row, picture_row"),
        (spoil_rows, "1 queries have no vectors; run `dvc repro embed`"),
        (spoil_numbers, r"pictures\.safetensors cannot be read \(.*out of bounds.*\); run `dvc repro embed`"),
        (spoil_vectors, r"pictures\.safetensors: 2 rows are not finite; run `dvc repro --force embed`"),
        (spoil_file, r"pictures\.safetensors cannot be read"),
    ],
)
def test_broken_vectors_are_refused_with_what_to_do(spoil: Any, words: str) -> None:
    spoil()
    with pytest.raises(ArmsError, match=words) as caught:
        load_vectors(QUERIES, "picture", ["pixels"])
    assert caught.value.exit_code == 1
