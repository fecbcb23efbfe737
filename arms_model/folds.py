"""Which part of the data a query belongs to, decided by the hash of its group.

Near-copies of a picture, or questions drawn from one template, share a group and must never stand on both sides. A hash
needs no table of who went where: a group keeps its side when queries or VLMs are added or the order changes.
Nothing here looks at labels. Used by the `split` stage and by cross-fitting.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import ConfigError

NUM_FOLDS = 5


def fold_of(group: str, *, num_folds: int = NUM_FOLDS) -> int:
    """The outer fold of a group: the first 8 hex digits of sha256(group), modulo the number of folds."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % num_folds


def outer_folds(groups: Sequence[str] | NDArray[np.str_], *, num_folds: int = NUM_FOLDS) -> NDArray[np.int64]:
    """The outer fold of every query.

    Args:
        groups: (N,) the group of each query.
        num_folds: how many folds.

    Returns:
        (N,) int64 in [0, num_folds).
    """
    return _map_groups(groups, {group: fold_of(group, num_folds=num_folds) for group in _distinct(groups)})


def inner_folds(
    groups: Sequence[str] | NDArray[np.str_], *, salt: str = "inner", num_folds: int = 3
) -> NDArray[np.int64]:
    """Folds inside a training part, for choices that must not see the outer fold.

    The salt makes them independent of the outer folds: without it a training part of four outer folds would lack
    residues.

    Args:
        groups: (N,) the group of each training query.
        salt: another salt gives another division.
        num_folds: how many folds.

    Returns:
        (N,) int64 in [0, num_folds).
    """
    return _map_groups(groups, {g: int(share_of(g, salt=salt) * num_folds) for g in _distinct(groups)})


def validation_mask(
    groups: Sequence[str] | NDArray[np.str_], *, share: float = 0.2, salt: str = "validation"
) -> NDArray[np.bool_]:
    """The validation side of a training part: whole groups, about `share` of them.

    Args:
        groups: (N,) the group of each training query.
        share: of the groups, in (0, 1).
        salt: another salt gives another validation side.

    Returns:
        (N,) bool, True = validation.

    Raises:
        ConfigError: `share` outside (0, 1).
    """
    if not 0 < share < 1:
        raise ConfigError(f"share of the validation side: expected a number in (0, 1), got {share}; 0.2 is usual.")
    sides = {group: share_of(group, salt=salt) < share for group in _distinct(groups)}
    return np.array([sides[str(group)] for group in groups], dtype=bool)


def assign_split(group: str, shares: Mapping[str, float], *, salt: str = "split") -> str:
    """The split of a group by shares of the hash's range.

    Args:
        group: the group's name.
        shares: split -> share; they add up to 1. Their order decides which part of the range each one takes.
        salt: another salt gives another division.

    Returns:
        The name of one split. It depends on `group`, `shares` and `salt` alone.

    Raises:
        ConfigError: a negative share, or shares that do not add up to 1.
    """
    if not shares or min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9):
        raise ConfigError(f"shares of the splits: expected numbers from 0 that add up to 1, got {dict(shares)}.")
    position = share_of(group, salt=salt)
    for name, end in zip(shares, itertools.accumulate(shares.values()), strict=True):
        if position < end:
            return name
    return [name for name, share in shares.items() if share > 0][-1]  # the shares' sum was rounded below 1


def share_of(group: str, *, salt: str) -> float:
    """Where a group stands in [0, 1), evenly spread: the first 13 hex digits of sha256(salt, group)."""
    digest = hashlib.sha256(f"{salt}\x00{group}".encode()).hexdigest()
    return float(int(digest[:13], 16) / 16**13)


def _distinct(groups: Sequence[str] | NDArray[np.str_]) -> set[str]:
    return {str(group) for group in groups}


def _map_groups(groups: Sequence[str] | NDArray[np.str_], values: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([values[str(group)] for group in groups], dtype=np.int64)
