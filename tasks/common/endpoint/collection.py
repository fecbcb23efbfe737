"""What the asked VLMs answered, as rows of table `collect`: known answers from the store, the others asked now.

VLMs whose sample is drawn from what the base pool answers rightly are asked after the base pool.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arms_model.errors import ConfigError, DataError, EndpointError
from arms_model.settings import nearest
from tasks.common.asked import asked, first_asked
from tasks.common.endpoint.answers import AnswerStore, asking_alone
from tasks.common.endpoint.asking import Outcome, Plan, api_key, ask_all, wrong_model
from tasks.common.endpoint.prices import refuse_budget_without_prices
from tasks.common.endpoint.requests import Picture, Request, make_request, picture_as_sent, render_prompt
from tasks.common.endpoint.servers import running
from tasks.common.labelling import answered_rightly
from tasks.common.tables import SCHEMAS
from tasks.common.vlms import Endpoint, Vlm

log = logging.getLogger(__name__)
_CHUNK = 5000  # questions looked up at a time, so that memory holds few answers


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
    """How far the questions to one VLM are answered.

    Attributes:
        vlm: the VLM.
        requests: all that it is asked.
        pending: those without an answer that is taken.
    """

    vlm: Vlm
    requests: Sequence[Request]
    pending: Sequence[Request]

    @property
    def keys(self) -> set[str]:
        """The answers' keys; two queries may have one."""
        return {request.key for request in self.requests}


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
        columns = ("query_id", "question", "choices", "language", "image", "image_sha256")
        self._rows = {row["query_id"]: row for row in queries.select(columns).iter_rows(named=True)}
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
    refuse_unpriced_budgets(vlms, limits)
    refuse_servers_of_nobody(vlms, limits)
    first = first_asked(vlms)
    later = [vlm for vlm in vlms if vlm not in first]
    done = _collected(first, questions, set(), [], later=later, store=store, limits=limits)
    if later:
        answered = answered_by_base(done, queries, store)
        done += _collected(later, questions, answered, done, later=[], store=store, limits=limits)
    return pl.concat([table(each, store) for each in done])


def answered_by_base(standings: Sequence[Standing], queries: pl.DataFrame, store: AnswerStore) -> set[str]:
    """The queries that a VLM of pool base answered rightly."""
    tables = [table(each, store) for each in standings if each.vlm.pool == "base"]
    return answered_rightly(pl.concat(tables), queries=queries, where="answers of pool base")


def standing(vlm: Vlm, requests: Sequence[Request], store: AnswerStore) -> Standing:
    """How far the store answers a VLM's questions."""
    pending: list[Request] = []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        models = store.served_models({request.key for request in chunk})
        answered = {key for key, served_model in models if _endpoint(vlm).is_answered_by(served_model)}
        pending.extend(request for request in chunk if request.key not in answered)
    return Standing(vlm=vlm, requests=requests, pending=pending)


def table(standing: Standing, store: AnswerStore) -> pl.DataFrame:
    """Rows of table `collect`: an answer or an error for each question to one VLM."""
    requests = standing.requests
    parts = [pl.DataFrame(schema=SCHEMAS["collect"])]
    for start in range(0, len(requests), _CHUNK):
        rows = _rows(standing.vlm, requests[start : start + _CHUNK], store)
        parts.append(pl.DataFrame(list(rows), schema=SCHEMAS["collect"]))
    return pl.concat(parts)


def _rows(vlm: Vlm, requests: Sequence[Request], store: AnswerStore) -> Iterator[dict[str, object]]:
    keys = {request.key for request in requests}
    answers, attempts = store.answers(keys), store.attempts(keys)
    for request in requests:
        kept = answers.get(request.key, [])
        taken = [answer for answer in kept if _endpoint(vlm).is_answered_by(answer.served_model)]
        refused = [answer for answer in kept if answer not in taken]
        failed = attempts.get(request.key)
        costs = [each.cost_usd for each in kept] + ([failed.cost_usd] if failed else [])
        known = [cost for cost in costs if cost is not None]
        spent = sum(known) if known else None
        row = dict.fromkeys(SCHEMAS["collect"]) | {
            "query_id": request.query_id, "vlm": vlm.name, "answer_key": request.key, "spent_usd": spent,
        }  # fmt: skip
        if taken:
            answer = min(taken, key=lambda answer: answer.answered_at)  # the first stays, whatever comes later
            same = (
                "output",
                "latency_s",
                "prompt_tokens",
                "completion_tokens",
                "cost_usd",
                "finish_reason",
                "request_id",
            )
            yield row | {name: getattr(answer, name) for name in same}
        elif refused:
            yield row | {"error": wrong_model(_endpoint(vlm), refused[-1].served_model)}
        else:
            yield row | {"error": failed.reason if failed else "not asked"}


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


def refuse_servers_of_nobody(vlms: Sequence[Vlm], limits: Limits) -> None:
    """Raise ConfigError where `collect.servers` names an endpoint that no block has."""
    known = {_endpoint(vlm).name for vlm in vlms}
    for name in limits.servers:
        if name not in known:
            raise ConfigError(f"collect.servers.{name}: no block's endpoint has that name; {nearest(name, known)}")


def _collected(
    vlms: Sequence[Vlm], questions: Questions, answered: set[str], before: Sequence[Standing], *, later: Sequence[Vlm],
    store: AnswerStore, limits: Limits,
) -> list[Standing]:  # fmt: skip
    """Ask these VLMs what is not known; give how far they are answered then."""
    requests = {vlm.name: questions.of(vlm, answered_by_base=answered) for vlm in vlms}
    for vlm in vlms:
        if not requests[vlm.name]:
            raise DataError(f"vlms: {vlm.name}: its block asks none of the queries; correct its benchmarks or sample.")
    to_ask = [vlm for vlm in vlms if standing(vlm, requests[vlm.name], store).pending]
    outcomes: list[Outcome] = []
    if to_ask:
        for vlm in (*to_ask, *later):
            api_key(vlm)  # a missing one stops the run before anything is asked
        endpoints = [_endpoint(vlm) for vlm in to_ask]
        with asking_alone(store.path, [(endpoint.name, endpoint.model) for endpoint in endpoints]):
            asked_now = [standing(vlm, requests[vlm.name], store) for vlm in to_ask]  # another process may have asked
            keys = {request.key for own in requests.values() for request in own}.union(*(each.keys for each in before))
            outcomes = _ask(asked_now, spent_usd=store.spent_usd(keys), store=store, limits=limits)
    standings = [standing(vlm, requests[vlm.name], store) for vlm in vlms]
    if to_ask:
        _report(standings, store)
        _refuse_incomplete(standings, outcomes, limits)
    return standings


def to_ask_once(standings: Sequence[Standing]) -> Iterator[tuple[Standing, list[Request]]]:
    """What is to be asked of each VLM: two queries, or two blocks of one model, may ask the same thing."""
    claimed: set[str] = set()
    for each in standings:
        mine = {request.key: request for request in each.pending if request.key not in claimed}
        claimed |= set(mine)
        yield each, list(mine.values())


def _ask(standings: Sequence[Standing], *, spent_usd: float, store: AnswerStore, limits: Limits) -> list[Outcome]:
    plans = [
        Plan(
            vlm=each.vlm, requests=mine, max_errors=_max_errors(each, limits), spent_usd=store.spent_usd(each.keys)
        )
        for each, mine in to_ask_once(standings)
        if mine
    ]  # fmt: skip
    if not plans:
        return []
    endpoints = [plan.endpoint for plan in plans]
    store.begin({endpoint.name for endpoint in endpoints})
    with running(limits.servers, endpoints, store=store.path):
        return ask_all(plans, store=store, budget_usd=limits.budget_usd, spent_usd=spent_usd)


def _report(standings: Sequence[Standing], store: AnswerStore) -> None:
    for each in standings:
        spent = f", ${store.spent_usd(each.keys):.4f} spent" if each.vlm.is_priced else ""
        num_open = len(each.pending)
        name = each.vlm.name
        log.info(
            "%s: %d questions, %d without an answer%s", name, len(each.requests), num_open, spent, extra={"vlm": name}
        )


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
    return math.floor(limits.max_error_share * len(standing.requests) + 1e-9)  # 0.29 x 100 is 28.999...


def _endpoint(vlm: Vlm) -> Endpoint:
    assert vlm.endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101 - refused before
    return vlm.endpoint
