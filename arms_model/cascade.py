"""The threshold cascade: ask the base router first, the new VLMs' router only where the base router is unsure.

Source: Algorithm 1 of arXiv 2606.08970, with base router R_b, new router R_n and threshold tau:

    c_b, m_b = max confidence and its VLM under R_b over the base pool
    if c_b > tau: answer with m_b                      # R_n is not run
    c_n, m_n = max confidence and its VLM under R_n over the new pool
    answer with m_b if c_b >= c_n else m_n

The paper leaves open what happens without candidates. **Decision**: with no base candidate the answer is m_n (R_n is
run, whatever tau), with no new candidate m_b (R_n has nothing to score and is not run), with neither none.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import ConfigError
from arms_model.metrics import choose

NO_POOL, BASE, NEW = -1, 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeChoice:
    """What the cascade decided for each query.

    Attributes:
        pool: (N,) int64: BASE (0), NEW (1), or NO_POOL (-1) where a query has no candidate at all.
        column: (N,) int64, the chosen VLM's column inside that pool; -1 where there is none.
        confidence: (N,) float64 of the chosen VLM under its own router; NaN where there is none.
        is_new_run: (N,) bool, whether the new router had to be run.
    """

    pool: NDArray[np.int64]
    column: NDArray[np.int64]
    confidence: NDArray[np.float64]
    is_new_run: NDArray[np.bool_]

    def joint_column(self, base_columns: NDArray[np.int64], new_columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The chosen column in a table over both pools.

        Args:
            base_columns: (Kb,) where each base VLM stands in that table.
            new_columns: (Kn,) where each new VLM stands in it.

        Returns:
            (N,) int64, -1 where there is no choice.
        """
        joint = np.full(len(self.pool), -1, dtype=np.int64)
        for pool, columns in ((BASE, base_columns), (NEW, new_columns)):
            mine = self.pool == pool
            joint[mine] = np.asarray(columns, dtype=np.int64)[self.column[mine]]
        return joint


def cascade(
    base_confidence: NDArray[np.floating],
    *,
    base_candidates: NDArray[np.bool_],
    new_confidence: NDArray[np.floating],
    new_candidates: NDArray[np.bool_],
    tau: float,
) -> CascadeChoice:
    """Algorithm 1 for many queries at once.

    Args:
        base_confidence: (N, Kb) in [0, 1] under the base router.
        base_candidates: (N, Kb) bool.
        new_confidence: (N, Kn) in [0, 1] under the new router; values of queries that do not run it are not looked at.
        new_candidates: (N, Kn) bool.
        tau: threshold in [0, 1]; 1 always compares both.

    Returns:
        The choice per query.

    Raises:
        ConfigError: `tau` outside [0, 1].
    """
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau: expected a confidence in [0, 1], got {tau}; the paper sweeps 0.5 to 1.0.")
    base, base_best = _best(base_confidence, base_candidates)
    is_new_run = new_candidates.any(axis=1) & ~(base_best > tau)  # no base candidate: -inf > tau is False
    new, new_best = _best(new_confidence, new_candidates & is_new_run[:, None])
    is_new = new_best > base_best
    pool = np.where(is_new, NEW, np.where(base >= 0, BASE, NO_POOL))
    confidence = np.where(is_new, new_best, base_best)
    return CascadeChoice(
        pool=pool.astype(np.int64),
        column=np.where(is_new, new, base),
        confidence=np.where(pool == NO_POOL, np.nan, confidence),
        is_new_run=is_new_run,
    )


def _best(
    confidence: NDArray[np.floating], candidates: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most confident candidate (N,) and its confidence (N,); -1 and -inf where there is no candidate."""
    column = choose(confidence, candidates)
    best = np.full(len(column), -np.inf)
    some = column >= 0
    best[some] = confidence[some, column[some]]
    return column, best
