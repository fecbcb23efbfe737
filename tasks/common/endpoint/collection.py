"""What the asked VLMs answered, as rows of table `collect`: known answers from the store, the others asked now.

VLMs whose sample is drawn from what the base pool answers rightly are asked after the base pool.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arms_model.errors import ConfigError, DataError, EndpointError
from tasks.common.asked import asked
from tasks.common.endpoint.answers import Answer, AnswerStore, Attempts, asking_alone
from tasks.common.endpoint.asking import Outcome, Plan, api_key, ask_all, wrong_model
from tasks.common.endpoint.prices import refuse_budget_without_prices
from tasks.common.endpoint.requests import Picture, Request, make_request, picture_as_sent, render_prompt
from tasks.common.endpoint.servers import running
from tasks.common.labelling import labels
from tasks.common.tables import SCHEMAS
from tasks.common.vlms import Endpoint, Vlm

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a collection may do.

    Attributes:
        max_error_share: of a VLM's questions, at most this share may fail.
        budget_usd: what all answers may cost together, those of earlier runs included; None for no limit.
        servers: see `servers.running`.
    """

    max_error_share: float
    budget_usd: float | None
    servers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of the questions to one VLM.

    Attributes:
        vlm: the VLM.
        requests: all that it is asked.
        answers: those taken, by key.
        refused: paid answers that are not taken (another model answered), by key.
        attempts: failed attempts, by key.
    """

    vlm: Vlm
    requests: Sequence[Request]
    answers: Mapping[str, Answer]
    refused: Mapping[str, Answer]
    attempts: Mapping[str, Attempts]

    @property
    def pending(self) -> list[Request]:
        """What has no answer yet."""
        return [request for request in self.requests if request.key not in self.answers]

    @property
    def spent_usd(self) -> float:
        """What these questions cost so far."""
        costs = [kept.cost_usd for part in (self.answers, self.refused, self.attempts) for kept in part.values()]
        return sum(cost for cost in costs if cost is not None)

    def table(self) -> pl.DataFrame:
        """Rows of table `collect`: an answer or an error for each question."""
        return pl.DataFrame(list(self._rows()), schema=SCHEMAS["collect"])

    def _rows(self) -> Iterator[dict[str, object]]:
        empty = dict.fromkeys(SCHEMAS["collect"])
        for request in self.requests:
            row = empty | {"query_id": request.query_id, "vlm": self.vlm.name}
            answer = self.answers.get(request.key)
            if answer is not None:
                yield row | {
                    "output": answer.output, "latency_s": answer.latency_s, "prompt_tokens": answer.prompt_tokens,
                    "completion_tokens": answer.completion_tokens, "cost_usd": answer.cost_usd,
                    "finish_reason": answer.finish_reason, "request_id": answer.request_id, "answer_key": answer.key,
                }  # fmt: skip
            else:
                yield row | {"error": self._reason(request.key), "cost_usd": self._cost(request.key)}

    def _reason(self, key: str) -> str:
        if key in self.refused:
            return wrong_model(_endpoint(self.vlm), self.refused[key].served_model)
        return self.attempts[key].reason if key in self.attempts else "not asked"

    def _cost(self, key: str) -> float | None:
        kept = (part.get(key) for part in (self.refused, self.attempts))
        costs = [part.cost_usd for part in kept if part is not None and part.cost_usd is not None]
        return sum(costs) if costs else None


class Questions:
    """Makes requests of queries; what VLMs share is made once."""

    def __init__(self, queries: pl.DataFrame, *, images: Path, max_pixels: int) -> None:
        """Take the query set.

        Args:
            queries: table `queries`.
            images: the folder that column `image` is relative to.
            max_pixels: a picture with more is refused.
        """
        self.askable = queries.select("query_id", "benchmark")
        self._rows = {row["query_id"]: row for row in queries.iter_rows(named=True)}
        self._images, self._max_pixels = images, max_pixels
        self._pictures: dict[tuple[str, int | None], Picture] = {}
        self._prompts: dict[tuple[str, str], str] = {}

    def of(self, vlm: Vlm, *, answered_by_base: set[str]) -> list[Request]:
        """All that `vlm` is asked.

        Raises:
            DataError: a picture is missing or broken.
        """
        rows = asked(self.askable, vlm, answered_by_base=answered_by_base)
        return [self._request(vlm, query_id) for query_id in rows["query_id"]]

    def _request(self, vlm: Vlm, query_id: str) -> Request:
        endpoint, row = _endpoint(vlm), self._rows[query_id]
        picture_id = (row["image"], endpoint.max_side)
        if picture_id not in self._pictures:
            self._pictures[picture_id] = picture_as_sent(
                self._images / row["image"], sha256=row["image_sha256"], max_side=endpoint.max_side,
                max_pixels=self._max_pixels,
            )  # fmt: skip
        prompt_id = (endpoint.prompt, query_id)
        if prompt_id not in self._prompts:
            self._prompts[prompt_id] = render_prompt(
                endpoint.prompt, question=row["question"], choices=row["choices"], language=row["language"]
            )
        return make_request(vlm, query_id=query_id, prompt=self._prompts[prompt_id], picture=self._pictures[picture_id])


def collect_answers(
    vlms: Sequence[Vlm], questions: Questions, *, queries: pl.DataFrame, store: AnswerStore, limits: Limits
) -> pl.DataFrame:
    """Ask what is not known, and give all rows.

    Args:
        vlms: the VLMs; each has an endpoint.
        questions: made of `queries`.
        queries: table `queries`.
        store: the answer store.
        limits: see `Limits`.

    Returns:
        Table `collect`, both pools together.

    Raises:
        ConfigError: a VLM without an endpoint, a missing key, or a budget without prices; nothing was asked.
        EndpointError: questions are left without an answer beyond what may be; all answers are in the store.
    """
    refuse_without_endpoints(vlms)
    done = _collected(first_asked(vlms), questions, set(), [], store=store, limits=limits)
    if later := [vlm for vlm in vlms if vlm not in first_asked(vlms)]:
        answered = answered_by_base(done, queries)
        done += _collected(later, questions, answered, done, store=store, limits=limits)
    return pl.concat([standing.table() for standing in done])


def first_asked(vlms: Sequence[Vlm]) -> list[Vlm]:
    """The VLMs that can be asked before any answer of the base pool is known."""
    return [vlm for vlm in vlms if vlm.sample_from == "all"]


def answered_by_base(standings: Sequence[Standing], queries: pl.DataFrame) -> set[str]:
    """The queries that a VLM of pool base answered rightly."""
    tables = [standing.table() for standing in standings if standing.vlm.pool == "base"]
    right = labels(pl.concat(tables), queries=queries, where="answers of pool base").filter("correct")
    return set(right["query_id"])


def standing(vlm: Vlm, requests: Sequence[Request], store: AnswerStore) -> Standing:
    """What the store knows of a VLM's questions."""
    keys = [request.key for request in requests]
    taken: dict[str, Answer] = {}
    refused: dict[str, Answer] = {}
    for key, kept in store.answers(keys).items():
        for answer in kept:
            (taken if _endpoint(vlm).is_answered_by(answer.served_model) else refused)[key] = answer
    return Standing(vlm=vlm, requests=requests, answers=taken, refused=refused, attempts=store.attempts(keys))


def refuse_without_endpoints(vlms: Sequence[Vlm]) -> None:
    """Raise ConfigError where a VLM cannot be asked."""
    if silent := [vlm.name for vlm in vlms if vlm.endpoint is None]:
        raise ConfigError(
            f"vlms: {', '.join(silent)}: no endpoint, but collect.source is 'endpoint'. Write `endpoint:` with name, "
            "base_url and model into the block, or remove it."
        )


def refuse_unpriced_budgets(vlms: Sequence[Vlm], limits: Limits) -> None:
    """Raise ConfigError where a budget is set that cannot be held, since a VLM's price or length is not known."""
    for vlm in vlms:
        if _endpoint(vlm).budget_usd is not None:
            refuse_budget_without_prices(vlm, where=f"vlms: {vlm.name}: endpoint.budget_usd")
        if limits.budget_usd is not None:
            refuse_budget_without_prices(vlm, where="collect.budget_usd")


def _collected(
    vlms: Sequence[Vlm], questions: Questions, answered: set[str], before: Sequence[Standing], *, store: AnswerStore,
    limits: Limits,
) -> list[Standing]:  # fmt: skip
    """Ask these VLMs what is not known; give where they stand then."""
    requests = {vlm.name: questions.of(vlm, answered_by_base=answered) for vlm in vlms}
    for vlm in vlms:
        if not requests[vlm.name]:
            raise DataError(f"vlms: {vlm.name}: its block asks none of the queries; correct its benchmarks or sample.")
    standings = [standing(vlm, requests[vlm.name], store) for vlm in vlms]
    to_ask = [each.vlm for each in standings if each.pending]
    refuse_unpriced_budgets(to_ask, limits)
    for vlm in to_ask:
        api_key(vlm)  # a missing one stops the run before anything is asked
    if to_ask:
        endpoints = [_endpoint(vlm) for vlm in to_ask]
        with asking_alone(store.path, [(endpoint.name, endpoint.model) for endpoint in endpoints]):
            standings = [standing(vlm, requests[vlm.name], store) for vlm in vlms]  # another process may have asked
            outcomes = _ask([*before, *standings], {vlm.name for vlm in to_ask}, store=store, limits=limits)
        standings = [standing(vlm, requests[vlm.name], store) for vlm in vlms]
        _report(standings)
        _refuse_incomplete(standings, outcomes, limits)
    return standings


def _ask(all_standings: Sequence[Standing], names: set[str], *, store: AnswerStore, limits: Limits) -> list[Outcome]:
    claimed: set[str] = set()  # two blocks may ask one model the same thing: it is asked once
    plans = []
    for each in all_standings:
        if each.vlm.name not in names:
            continue
        mine: dict[str, Request] = {}
        for request in each.pending:
            if request.key not in claimed:
                mine.setdefault(request.key, request)  # so may two queries
        claimed |= set(mine)
        if mine:
            plans.append(
                Plan(
                    vlm=each.vlm,
                    requests=list(mine.values()),
                    max_errors=_max_errors(each, limits),
                    spent_usd=each.spent_usd,
                )
            )
    if not plans:
        return []
    spent_usd = sum(each.spent_usd for each in all_standings)
    with running(limits.servers, [plan.endpoint for plan in plans]):
        return ask_all(plans, store=store, budget_usd=limits.budget_usd, spent_usd=spent_usd)


def _report(standings: Sequence[Standing]) -> None:
    for each in standings:
        spent = f", ${each.spent_usd:.4f} spent" if each.vlm.is_priced else ""
        num_open = len({request.key for request in each.pending})
        log.info("%s: %d questions, %d without an answer%s", each.vlm.name, len(each.requests), num_open, spent)


def _refuse_incomplete(standings: Sequence[Standing], outcomes: Sequence[Outcome], limits: Limits) -> None:
    given_up = {outcome.vlm: outcome.given_up for outcome in outcomes if outcome.given_up is not None}
    missing = []
    for each in standings:
        name, num_open = each.vlm.name, len(each.pending)
        if name in given_up or num_open > _max_errors(each, limits):
            reason = given_up.get(name, "more than collect.max_error_share allows")
            missing.append(f"{name}: {num_open} of {len(each.requests)} questions without an answer: {reason}")
    if missing:
        raise EndpointError(
            "no table was sealed, since answers are missing:\n  "
            + "\n  ".join(missing)
            + "\nEvery answer that came is "
            "kept. Mend the cause (endpoint, key, budget, or collect.max_error_share) and run the same command again: "
            "only what is missing is asked."
        )


def _max_errors(standing: Standing, limits: Limits) -> int:
    return int(limits.max_error_share * len(standing.requests))


def _endpoint(vlm: Vlm) -> Endpoint:
    assert vlm.endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101 - refused before
    return vlm.endpoint
