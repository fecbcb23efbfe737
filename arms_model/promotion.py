"""May the challenger take the champion's place: a rule of three outcomes on paired right-or-wrong figures.

The difference of macro EM, challenger minus champion, with its interval from the paired cluster bootstrap:

    refuse        upper end below 0          the challenger is worse, however little
    promote       lower end above -margin    not worse than the margin allows
    inconclusive  neither                    the labels at hand do not tell

Where both hold (a small loss, known exactly), it is refused. An inconclusive verdict says how many further queries of
the same kind would decide it, if the mean stays where it is and the interval narrows as 1 / sqrt(queries). With the
mean on a boundary no number would.

**Decision**: with fewer than `MIN_GROUPS` groups of queries, or a benchmark of one group, the verdict is inconclusive
whatever the interval says: the bootstrap draws from what it has seen, and from few groups its interval is too narrow
(of two versions that never differed it has no width at all). Such a verdict says how many further queries there would
have to be before an interval can be given; what it would then decide, nobody knows.

It knows numbers only: neither routers nor where labels come from.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import ConfigError, DataError
from arms_model.intervals import Interval, cluster_bootstrap

Decision = Literal["promote", "refuse", "inconclusive"]
MIN_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison came to.

    Attributes:
        decision: what to do.
        difference: of macro EM, challenger minus champion.
        champion_em: its macro EM on the same queries.
        challenger_em: likewise.
        num_queries: that were compared.
        num_left_out: where one of the two had no labelled candidate.
        num_groups: what was resampled.
        level: of the interval.
        margin: what a challenger may lose.
        needed: of an inconclusive one: further queries after which it would be decided, or, without a direction, after
            which an interval can be given; None where no number would do.
        direction: what they would decide; None where that cannot be said.
        reason: why it is inconclusive for another cause than the width of the interval; "" else.
    """

    decision: Decision
    difference: Interval
    champion_em: float
    challenger_em: float
    num_queries: int
    num_left_out: int
    num_groups: int
    level: float
    margin: float
    needed: int | None = None
    direction: Literal["promote", "refuse"] | None = None
    reason: str = ""


def compare(
    champion: NDArray[np.floating],
    challenger: NDArray[np.floating],
    *,
    groups: NDArray[np.str_],
    benchmarks: NDArray[np.str_],
    margin: float,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Judge a challenger.

    Args:
        champion: (N,) outcomes in [0, 1] on the queries of the gate; NaN where it had no labelled candidate.
        challenger: likewise.
        groups: (N,) what the bootstrap resamples.
        benchmarks: (N,) every one counts alike.
        margin: promoted where the difference is surely above -margin; 0 or more.
        level: of the interval, in (0, 1).
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: a margin or level that cannot be.
        DataError: no query has a labelled candidate of both.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ConfigError(f"register.margin: expected 0 or more, got {margin}; 0.01 allows a loss of one point.")
    if not 0 < level < 1:
        raise ConfigError(f"register.level: expected a number between 0 and 1, got {level}; 0.95 is usual.")
    both = ~(np.isnan(champion) | np.isnan(challenger))
    if not both.any():
        raise DataError(
            f"none of the {len(both)} queries has a labelled candidate of both versions, so there is nothing to "
            "compare; label some for the challenger's VLMs, or promote with --force and --why."
        )
    bootstrap = cluster_bootstrap(
        np.stack([champion, challenger])[:, both],
        groups=groups[both],
        benchmarks=benchmarks[both],
        draws=draws,
        seed=seed,
    )
    return decide(
        bootstrap.difference(1, 0, level=level),
        champion_em=bootstrap.interval(0, level=level).mean,
        challenger_em=bootstrap.interval(1, level=level).mean,
        num_left_out=int((~both).sum()),
        num_groups=dict(zip(bootstrap.benchmarks, bootstrap.num_groups.tolist(), strict=True)),
        num_queries_of=Counter(benchmarks[both].tolist()),
        margin=margin,
        level=level,
    )


def decide(
    difference: Interval,
    *,
    champion_em: float,
    challenger_em: float,
    num_left_out: int,
    num_groups: Mapping[str, int],
    num_queries_of: Mapping[str, int],
    margin: float,
    level: float,
) -> Verdict:
    """The rule itself; see `Verdict` for the arguments; `num_groups` and `num_queries_of` are by benchmark."""
    decision: Decision = "inconclusive"
    total, num_queries = sum(num_groups.values()), sum(num_queries_of.values())
    needed, direction, reason = None, None, _too_few(num_groups)
    if reason:
        needed = _until_interval(num_groups, num_queries_of)
    elif difference.high < 0:
        decision = "refuse"
    elif difference.low > -margin:
        decision = "promote"
    else:
        needed, direction, reason = _what_would_decide(difference, margin=margin, num_queries=num_queries)
    return Verdict(
        decision=decision,
        difference=difference,
        champion_em=champion_em,
        challenger_em=challenger_em,
        num_queries=num_queries,
        num_left_out=num_left_out,
        num_groups=total,
        level=level,
        margin=margin,
        needed=needed,
        direction=direction,
        reason=reason,
    )


def _too_few(num_groups: Mapping[str, int]) -> str:
    """Why there are too few groups for an interval; "" where there are enough."""
    if (total := sum(num_groups.values())) < MIN_GROUPS:
        return f"{total} groups of queries are too few for an interval, expected at least {MIN_GROUPS}"
    alone = [name for name, number in num_groups.items() if number < 2]
    return f"one group of queries says nothing of the spread on benchmark {', '.join(alone)}" if alone else ""


def _until_interval(num_groups: Mapping[str, int], num_queries_of: Mapping[str, int]) -> int:
    """Further queries until there are groups enough: a second one for each benchmark of one, and `MIN_GROUPS` in all.

    A group is taken to be as large as those of its benchmark, and one of any benchmark as large as all on average.
    """
    alone = [name for name, number in num_groups.items() if number < 2]
    total = sum(num_groups.values())
    others = max(0, MIN_GROUPS - total - len(alone))
    return sum(num_queries_of[name] for name in alone) + math.ceil(others * sum(num_queries_of.values()) / total)


def _what_would_decide(
    difference: Interval, *, margin: float, num_queries: int
) -> tuple[int | None, Literal["promote", "refuse"] | None, str]:
    """Further queries until the nearer decision falls, with the mean and the spread as they are."""
    ways: list[tuple[int, Literal["promote", "refuse"]]] = []
    slack = difference.mean + margin  # how far the mean lies above what promotion asks
    if slack > 0:
        ways.append((_further(difference.mean - difference.low, slack, num_queries), "promote"))
    if difference.mean < 0:
        ways.append((_further(difference.high - difference.mean, -difference.mean, num_queries), "refuse"))
    if not ways:
        return None, None, "the mean sits on the boundary: not decidable by labels"
    needed, direction = min(ways)
    return needed, direction, ""


def _further(half_width: float, distance: float, num_queries: int) -> int:
    """Queries beyond `num_queries` until an interval's half narrows from `half_width` to less than `distance`."""
    return max(1, math.ceil(num_queries * (half_width / distance) ** 2) - num_queries)
