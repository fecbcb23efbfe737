"""What asking a VLM should cost and how long it should take: from its kept answers, else by rules of thumb."""

from dataclasses import dataclass

from arms_model.progress import clock
from tasks.common.endpoint.answers import AnswerStore
from tasks.common.endpoint.collection import Standing
from tasks.common.endpoint.prices import expected_usd, worst_case_usd

ASSUMED_LATENCY_S = 2.0  # where no answer was kept yet


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What asking one VLM would mean.

    Attributes:
        vlm: its name.
        num_questions: all that it is asked.
        num_to_ask: those without an answer.
        is_at_most: whether both numbers are upper bounds.
        expected_usd: of those to ask; None where no price is known.
        worst_usd: likewise, every answer as long as max_tokens allows.
        spent_usd: what the known answers cost.
        expected_s: time for those to ask, s.
        is_assumed: whether the time rests on an assumed latency.
    """

    vlm: str
    num_questions: int
    num_to_ask: int
    is_at_most: bool
    expected_usd: float | None
    worst_usd: float | None
    spent_usd: float
    expected_s: float
    is_assumed: bool

    def cells(self) -> list[str]:
        """A row of the table that `--dry-run` prints."""
        bound = "≤ " if self.is_at_most else ""
        return [
            self.vlm,
            f"{bound}{self.num_questions}",
            str(self.num_questions - self.num_to_ask),
            f"{bound}{self.num_to_ask}",
            "no price" if self.expected_usd is None else f"{self.expected_usd:.4f}",
            "no price" if self.worst_usd is None else f"{self.worst_usd:.4f}",
            f"{self.spent_usd:.4f}",
            clock(self.expected_s) + (" *" if self.is_assumed and self.num_to_ask else ""),
        ]


def forecast(standing: Standing, store: AnswerStore, *, is_at_most: bool) -> Forecast:
    """What asking the open questions of one VLM would mean.

    Args:
        standing: where it stands.
        store: its kept answers give the means of latency and tokens.
        is_at_most: whether `standing` holds more than will be asked.
    """
    vlm, pending = standing.vlm, standing.pending
    endpoint = vlm.endpoint
    assert endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101 - refused before
    latency_s, prompt_tokens, completion_tokens = store.mean_of(endpoint=endpoint.name, model=endpoint.model)
    is_priced = vlm.is_priced
    expected = [
        expected_usd(vlm, request, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens) or 0.0
        for request in pending
    ]
    seconds = len(pending) * (ASSUMED_LATENCY_S if latency_s is None else latency_s) / endpoint.concurrency
    if endpoint.requests_per_minute is not None:
        seconds = max(seconds, len(pending) * 60 / endpoint.requests_per_minute)
    return Forecast(
        vlm=vlm.name,
        num_questions=len(standing.requests),
        num_to_ask=len(pending),
        is_at_most=is_at_most,
        expected_usd=sum(expected) if is_priced else None,
        worst_usd=sum(worst_case_usd(vlm, request) for request in pending) if is_priced else None,
        spent_usd=standing.spent_usd,
        expected_s=seconds,
        is_assumed=latency_s is None,
    )
