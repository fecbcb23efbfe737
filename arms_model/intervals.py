"""Paired cluster bootstrap: how sure a difference between two methods is.

Queries that share a picture or a template are not independent, so whole groups are drawn, with replacement, inside each
benchmark. Every method is scored on the same draws, so a difference of two methods is paired. The macro average takes
every benchmark with the same weight, whatever its size.

Before this, average the seeds' outcomes per query: the spread over seeds is another question.

Speed: a draw is a vector of group counts, so all methods' means over all draws are two matrix products with the sums
per group; nothing is done per query and draw.
"""

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import ConfigError, DataError

_CELLS_AT_ONCE = 2_000_000  # group counts held in memory at once: 16 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its percentile interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The means of M methods on B benchmarks, and their bootstrap draws.

    Attributes:
        benchmarks: names, sorted.
        num_queries: (B,) int64, queries that counted.
        num_groups: (B,) int64, groups they form.
        means: (M, B) float64.
        draws: (M, B, R) float64, the same means over R resampled sets of groups.
    """

    benchmarks: tuple[str, ...]
    num_queries: NDArray[np.int64]
    num_groups: NDArray[np.int64]
    means: NDArray[np.float64]
    draws: NDArray[np.float64]

    def interval(self, method: int, *, benchmark: str | None = None, level: float = 0.95) -> Interval:
        """One method's mean.

        Args:
            method: its row in the outcomes.
            benchmark: a name, or None for the macro average.
            level: of the interval, in (0, 1).

        Returns:
            The mean with its percentile interval.

        Raises:
            ConfigError: no such benchmark.
        """
        return _percentiles(*self._values(method, benchmark), level=level)

    def difference(self, method: int, other: int, *, benchmark: str | None = None, level: float = 0.95) -> Interval:
        """`method` minus `other`, paired: both means of a draw come from the same groups.

        Args:
            method: its row in the outcomes.
            other: the row that is taken away.
            benchmark: a name, or None for the macro average.
            level: of the interval, in (0, 1).

        Returns:
            The mean difference with its percentile interval.

        Raises:
            ConfigError: no such benchmark.
        """
        (mean, draws), (other_mean, other_draws) = self._values(method, benchmark), self._values(other, benchmark)
        return _percentiles(mean - other_mean, draws - other_draws, level=level)

    def _values(self, method: int, benchmark: str | None) -> tuple[float, NDArray[np.float64]]:
        if benchmark is None:
            return float(self.means[method].mean()), self.draws[method].mean(axis=0)
        if benchmark not in self.benchmarks:
            raise ConfigError(f"no benchmark '{benchmark}' in this bootstrap; there are {', '.join(self.benchmarks)}.")
        place = self.benchmarks.index(benchmark)
        return float(self.means[method, place]), self.draws[method, place]


def cluster_bootstrap(
    outcomes: NDArray[np.floating],
    *,
    groups: NDArray[np.str_],
    benchmarks: NDArray[np.str_],
    draws: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Means and bootstrap draws of M methods on the same queries.

    Args:
        outcomes: (M, N), the share of seeds that were right, in [0, 1]. A query without candidates is NaN in all
            methods and leaves the table.
        groups: (N,) what is resampled: the groups that the folds were made from.
        benchmarks: (N,).
        draws: how many.
        seed: the same seed gives the same draws of a benchmark, whatever other benchmarks stand beside it.

    Returns:
        Means and draws.

    Raises:
        DataError: shapes differ, a query is NaN for some methods only, or no query is left.
    """
    if outcomes.ndim != 2 or not outcomes.shape[1] == len(groups) == len(benchmarks):
        raise DataError(
            f"outcomes must be (methods, queries) beside groups and benchmarks (queries,); got {outcomes.shape}, "
            f"{len(groups)} groups and {len(benchmarks)} benchmarks."
        )
    kept = _common_queries(outcomes)
    values = np.asarray(outcomes, dtype=np.float64)[:, kept]
    groups, benchmarks = np.asarray(groups)[kept], np.asarray(benchmarks)[kept]
    names = [str(name) for name in np.unique(benchmarks)]
    parts = [_one_benchmark(values[:, benchmarks == name], groups[benchmarks == name]) for name in names]
    return Bootstrap(
        benchmarks=tuple(names),
        num_queries=np.array([int(sizes.sum()) for _, sizes in parts], dtype=np.int64),
        num_groups=np.array([len(sizes) for _, sizes in parts], dtype=np.int64),
        means=np.stack([sums.sum(axis=1) / sizes.sum() for sums, sizes in parts], axis=1),
        draws=np.stack(
            [
                _resampled_means(sums, sizes, draws=draws, random=_generator(seed, name))
                for name, (sums, sizes) in zip(names, parts, strict=True)
            ],
            axis=1,
        ),
    )


def _common_queries(outcomes: NDArray[np.floating]) -> NDArray[np.bool_]:
    missing = np.isnan(outcomes)
    some = missing.any(axis=0) & ~missing.all(axis=0)
    if some.any():
        raise DataError(
            f"{int(some.sum())} queries have an outcome for some methods only; methods of one table must be scored "
            "on the same queries: drop these queries, or score the methods in two tables."
        )
    kept = ~missing.any(axis=0)
    if not kept.any():
        raise DataError("no query has an outcome, so there is nothing to resample; look at the candidates first.")
    return np.asarray(kept)


def _one_benchmark(
    values: NDArray[np.float64], groups: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum of outcomes per method and group (M, G), and the groups' sizes (G,)."""
    _, place = np.unique(groups, return_inverse=True)
    sizes = np.bincount(place).astype(np.float64)
    sums: NDArray[np.float64] = np.stack([np.bincount(place, weights=row, minlength=len(sizes)) for row in values])
    return sums, sizes


def _generator(seed: int, benchmark: str) -> np.random.Generator:
    return np.random.default_rng([seed, int(hashlib.sha256(benchmark.encode()).hexdigest()[:16], 16)])


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], *, draws: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Means (M, R) over R draws of as many groups as there are; in blocks, so memory does not grow with R."""
    num_groups = len(sizes)
    block = max(1, _CELLS_AT_ONCE // num_groups)
    means = np.empty((len(sums), draws))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = random.integers(0, num_groups, size=(rows, num_groups))  # each row: which groups were drawn
        drawn += np.arange(rows)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(np.float64)
        means[:, start : start + rows] = (sums @ counts.T) / (counts @ sizes)
    return means


def _percentiles(mean: float, draws: NDArray[np.float64], *, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=float(low), high=float(high))
