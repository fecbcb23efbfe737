"""The sealed tables as arrays: queries as rows, VLMs as columns sorted by name, labels with NaN where not asked.

What the train stages, `cascade_eval` and the studies all read; they take from it what they need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from arms_model.encoders.build import EncoderSettings
from arms_model.encoders.protocol import Modality
from arms_model.errors import ConfigError, DataError
from arms_model.settings import nearest, parse
from tasks.common.files import read_json
from tasks.common.tables import read_table

QUERIES = Path("queries/queries.parquet")
IMAGES = Path("queries/images")
SPLIT = Path("split/split.parquet")
EMBED = Path("embed")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of some VLMs.

    Attributes:
        vlms: the K VLMs, sorted by name.
        profiles: their profile sentences.
        pools: their pools, `base` or `new`.
        correct: (N, K) float32: 1 right, 0 wrong, NaN not asked.
    """

    vlms: tuple[str, ...]
    profiles: tuple[str, ...]
    pools: tuple[str, ...]
    correct: NDArray[np.float32]


def load_queries() -> pl.DataFrame:
    """Table `queries`, sorted by query_id: the order of all rows here."""
    return read_table(QUERIES, "queries").sort("query_id")


def load_splits(queries: pl.DataFrame) -> NDArray[np.str_]:
    """(N,) the split of each query.

    Raises:
        DataError: a query without a split.
    """
    joined = queries.select("query_id").join(
        read_table(SPLIT, "split"), on="query_id", how="left", maintain_order="left"
    )
    missing = joined.filter(pl.col("split").is_null())["query_id"]
    if len(missing):
        raise DataError(
            f"{SPLIT}: {len(missing)} queries have no split (first: {missing.head(20).to_list()}); run stage `split`."
        )
    return np.asarray(joined["split"].to_list(), dtype=np.str_)


def groups_of(queries: pl.DataFrame, group_by: str) -> NDArray[np.str_]:
    """(N,) the group of each query, from column `group_by`."""
    return np.asarray(queries[group_by].to_list(), dtype=np.str_)


def load_labels(queries: pl.DataFrame, pools: Sequence[str]) -> Labels:
    """Labels of the VLMs of `pools`, from `profiles/` and `label/`.

    Raises:
        DataError: a broken table, a label of an unknown query or of a VLM without a profile.
    """
    profiles = pl.concat([read_table(Path(f"profiles/{pool}.parquet"), "profiles") for pool in pools]).sort("vlm")
    labels = pl.concat([read_table(Path(f"label/{pool}.parquet"), "label") for pool in pools])
    vlms = tuple(profiles["vlm"].to_list())
    return Labels(
        vlms=vlms,
        profiles=tuple(profiles["profile"].to_list()),
        pools=tuple(profiles["pool"].to_list()),
        correct=label_matrix(queries, labels.select("query_id", "vlm", "correct"), vlms),
    )


def label_matrix(queries: pl.DataFrame, labels: pl.DataFrame, vlms: Sequence[str]) -> NDArray[np.float32]:
    """Labels as a matrix.

    Args:
        queries: N rows in their order.
        labels: query_id, vlm, correct; a null `correct` is left out.
        vlms: K names, the columns' order.

    Returns:
        (N, K) float32 in {0, 1, NaN}.

    Raises:
        DataError: a label of a query or of a VLM that is not known.
    """
    row_of = dict(zip(queries["query_id"].to_list(), range(queries.height), strict=True))
    column_of = {vlm: column for column, vlm in enumerate(vlms)}
    strangers = labels.filter(~pl.col("query_id").is_in(list(row_of)) | ~pl.col("vlm").is_in(list(column_of)))
    if strangers.height:
        first = strangers.select("query_id", "vlm").head(20).rows()
        raise DataError(
            f"{strangers.height} labels are of an unknown query or VLM (first: {first}); run `dvc repro label`."
        )
    known = labels.drop_nulls("correct")
    matrix = np.full((queries.height, len(vlms)), np.nan, dtype=np.float32)
    rows = np.asarray([row_of[query] for query in known["query_id"]], dtype=np.int64)
    columns = np.asarray([column_of[vlm] for vlm in known["vlm"]], dtype=np.int64)
    matrix[rows, columns] = known["correct"].cast(pl.Float32).to_numpy()
    return matrix


@dataclass(frozen=True, kw_only=True)
class DescribedEncoder:
    """An entry of `embed/encoders.json`.

    Attributes:
        modality: what it encodes.
        identity: everything that decides its vectors.
        width: of its vectors.
        settings: its block of params.yaml.
    """

    modality: Modality
    identity: str
    width: int
    settings: EncoderSettings


def describe_encoders(names: Sequence[str], modality: str | None = None) -> dict[str, DescribedEncoder]:
    """What stage `embed` wrote down about the named encoders.

    Args:
        names: encoders of section `embed`.
        modality: what all of them must encode, `question` or `picture`; None where it does not matter.

    Raises:
        ConfigError: a name that `embed` does not know, or an encoder of the other modality.
        DataError: the file is missing or broken.
    """
    path = EMBED / "encoders.json"
    try:
        known = parse(_Described, {"encoders": read_json(path)}, str(path)).encoders
    except ConfigError as error:
        raise DataError(f"{error} {path} is not as stage `embed` writes it; run `dvc repro --force embed`.") from None
    fitting = [name for name, encoder in known.items() if modality in (None, encoder.modality)]
    for name in names:
        if name not in known:
            raise ConfigError(f"encoder '{name}' does not stand in params.yaml: embed; {nearest(name, fitting)}")
        if name not in fitting:
            raise ConfigError(
                f"encoder '{name}' encodes {known[name].modality}s, but stands where one for {modality}s is expected; "
                f"{nearest(name, fitting)}"
            )
    return {name: known[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class _Described:
    encoders: dict[str, DescribedEncoder]


def load_encoders(names: Sequence[str], modality: str | None = None) -> dict[str, EncoderSettings]:
    """The settings of the named encoders; see `describe_encoders`."""
    return {name: encoder.settings for name, encoder in describe_encoders(names, modality).items()}


def load_vectors(queries: pl.DataFrame, modality: str, names: Sequence[str]) -> NDArray[np.float32]:
    """Sealed vectors of the named encoders side by side.

    Args:
        queries: N rows in their order.
        modality: `question` or `picture`.
        names: encoders, in the order their vectors are put side by side; none gives width 0.

    Returns:
        (N, D) float32.

    Raises:
        ConfigError: an encoder that `embed` does not know, or of the other modality.
        DataError: a broken index, rows missing, or vectors that are not finite.
    """
    describe_encoders(names, modality)
    index = queries.select("query_id").join(
        read_table(EMBED / "index.parquet", "embed_index"), on="query_id", how="left", maintain_order="left"
    )
    if index[f"{modality}_row"].null_count():
        raise DataError(
            f"{EMBED}: {index[f'{modality}_row'].null_count()} queries have no vectors; run `dvc repro embed`."
        )
    rows = index[f"{modality}_row"].to_numpy()
    path = EMBED / f"{modality}s.safetensors"
    parts = [np.zeros((queries.height, 0), dtype=np.float32)]
    try:
        with safe_open(path, framework="numpy") as file:
            parts += [file.get_tensor(name)[rows] for name in names]
    except (SafetensorError, OSError, IndexError) as error:  # IndexError: the index is of other vectors
        raise DataError(f"{path} cannot be read ({error}); run `dvc repro embed`.") from None
    vectors = np.concatenate(parts, axis=1)
    if not np.isfinite(vectors).all():
        raise DataError(
            f"{path}: {int((~np.isfinite(vectors)).any(1).sum())} rows are not finite; run `dvc repro --force embed`."
        )
    return vectors
