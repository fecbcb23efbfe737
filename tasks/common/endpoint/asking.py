"""Ask all VLMs at once, each under its own limits, from one asyncio loop; every answer is kept as it arrives.

Memory stays small: a picture is read when its request is sent and let go when the answer is there. A first Ctrl-C (or
SIGTERM) sends nothing more and waits for the answers that are under way, since they are paid for; a second one stops at
once. A VLM is given up where all its further questions would fail too (a wrong key, a model that is not there), where
its budget could be overrun, or where more of its questions failed than may.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.progress import Progress
from tasks.common.endpoint.answers import Answer, AnswerStore, is_room_left, sync
from tasks.common.endpoint.pacing import HaltedError, Pace
from tasks.common.endpoint.prices import Budget, BudgetSpentError, Dearest, worst_case_usd
from tasks.common.endpoint.replies import AttemptError, Caller, Reply
from tasks.common.endpoint.requests import Request, message_body
from tasks.common.stage import Terminated
from tasks.common.vlms import Endpoint, Vlm

log = logging.getLogger(__name__)
_SYNC_S = 0.5  # at most so long until the disk is made to write what was committed
_NUM_PROBES = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be asked of one VLM.

    Attributes:
        vlm: the VLM; has an endpoint.
        requests: what has no answer yet.
        max_errors: it is given up when more of them fail.
        spent_usd: what its pairs cost so far.
    """

    vlm: Vlm
    requests: Sequence[Request]
    max_errors: int
    spent_usd: float

    @property
    def endpoint(self) -> Endpoint:
        """The VLM's endpoint."""
        assert self.vlm.endpoint is not None  # noqa: S101 - plans are made of VLMs that have one
        return self.vlm.endpoint


@dataclass(kw_only=True)
class Outcome:
    """What came of a plan.

    Attributes:
        vlm: the VLM's name.
        errors: why requests failed, by key.
        given_up: why the VLM was given up; None where it was not.
    """

    vlm: str
    errors: dict[str, str] = field(default_factory=dict)
    given_up: str | None = None


def api_key(vlm: Vlm) -> str | None:
    """The key of a VLM's endpoint.

    Raises:
        ConfigError: the variable that should hold it is not set, or holds what no header can carry.
    """
    variable = vlm.endpoint.api_key_variable if vlm.endpoint else None
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"vlms: {vlm.name}: the environment variable {variable} is not set; expected the key of "
            f"{vlm.endpoint.base_url if vlm.endpoint else ''} in it. Set it, and run the same command again."
        )
    if not (key.isascii() and key.isprintable()):  # the client's own error would show the key
        raise ConfigError(
            f"vlms: {vlm.name}: the environment variable {variable} holds a line break or another character that no "
            "HTTP header can carry; expected one key. Set it anew, and run the same command again."
        )
    return key


def ask_all(
    plans: Sequence[Plan], *, store: AnswerStore, budget_usd: float | None, spent_usd: float = 0.0
) -> list[Outcome]:
    """Ask what the plans hold.

    Args:
        plans: one for each VLM that has something to be asked.
        store: takes every answer and every failed attempt.
        budget_usd: limit of the whole run; None for none.
        spent_usd: what counts as spent already.

    Returns:
        What came of each plan, in their order.

    Raises:
        ConfigError: a key is missing, or no client can be made; nothing was asked.
        StorageError: the store could not keep an answer, or the disk is nearly full.
        KeyboardInterrupt: Ctrl-C, once what was under way is kept.
        Terminated: SIGTERM, likewise.
    """
    keys = [api_key(plan.vlm) for plan in plans]
    budget = Budget(budget_usd, name="collect.budget_usd", spent_usd=spent_usd)
    run = _Run(plans, keys=keys, store=store, budget=budget)
    with _signals_restored():
        asyncio.run(run.ask())
    run.raise_what_stopped_it()
    return [asking.outcome for asking in run.askings]


class _Run:
    """All plans, and what they share: the store, the budget, the progress line, the wish to stop."""

    def __init__(
        self, plans: Sequence[Plan], *, keys: Sequence[str | None], store: AnswerStore, budget: Budget
    ) -> None:
        self.store, self.budget = store, budget
        self.is_priced = any(plan.vlm.is_priced for plan in plans)
        self.num_under_way = 0
        self.askings = [_Asking(plan, key=key, run=self) for plan, key in zip(plans, keys, strict=True)]
        self.progress = Progress(sum(len(plan.requests) for plan in plans), "asking", "question")
        self._signal: int | None = None
        self._unsaved: list[Answer] = []
        self._storage_error: StorageError | None = None
        self._failure: Exception | None = None

    async def ask(self) -> None:
        async with self._stopped_by_signals(), self._synced():
            with self.progress:
                await asyncio.gather(*(asking.ask() for asking in self.askings))

    def keep(self, answer: Answer) -> bool:
        """Keep an answer; one that cannot be written waits in memory while the run stops. Gives whether it was new."""
        try:
            return self.store.add(answer)
        except StorageError as error:
            self._unsaved.append(answer)
            self.storage_failed(error)
            return True

    def storage_failed(self, error: StorageError) -> None:
        """Nothing more may be asked: it could not be kept."""
        self._storage_error = self._storage_error or error
        self._halt()

    def failed(self, error: Exception) -> None:
        """A fault of ours: nothing more is sent, what is under way is waited for, then it is raised."""
        self._failure = self._failure or error
        self._halt()

    def _halt(self) -> None:
        for asking in self.askings:
            asking.pace.halt()

    def count(self) -> None:
        """One more request is done with."""
        num_failed = sum(len(asking.outcome.errors) for asking in self.askings)
        notes = [f"{num_failed} failed"] if num_failed else []
        notes += [f"${self.budget.spent_usd:.4f} spent"] if self.is_priced else []
        self.progress.update(note=", ".join(notes))

    def raise_what_stopped_it(self) -> None:
        if self._storage_error is not None:
            raise StorageError(f"{self._storage_error} {self._last_try_to_save()}") from None
        if self._failure is not None:
            raise self._failure
        if self._signal == signal.SIGTERM:
            raise Terminated
        if self._signal is not None:
            raise KeyboardInterrupt

    def _last_try_to_save(self) -> str:
        if not self._unsaved:
            return "Every answer that came is kept."
        try:
            self.store.add_all(self._unsaved)
        except StorageError:
            return f"{len(self._unsaved)} answers that came meanwhile could not be kept."
        return "Every answer that came is kept."

    @contextlib.asynccontextmanager
    async def _stopped_by_signals(self) -> AsyncIterator[None]:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # noqa: S101 - we are inside one
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, self._on_signal, signum, task)
        try:
            yield
        except asyncio.CancelledError:
            if self._signal is None:
                raise

    def _on_signal(self, signum: int, task: "asyncio.Task[object]") -> None:
        if self._signal is not None:
            log.info("stopped at once: %d calls under way count as paid at the worst case", self.num_under_way)
            task.cancel()
            return
        self._signal = signum
        self._halt()
        if self.num_under_way:
            log.info("stopping; waiting for %d answers under way (once more stops at once)", self.num_under_way)

    @contextlib.asynccontextmanager
    async def _synced(self) -> AsyncIterator[None]:
        async def sync_for_ever() -> None:
            while True:
                await asyncio.sleep(_SYNC_S)
                await asyncio.to_thread(sync, self.store.path)

        task = asyncio.create_task(sync_for_ever())
        try:
            yield
        finally:
            task.cancel()


class _Asking:
    """One plan under way."""

    def __init__(self, plan: Plan, *, key: str | None, run: _Run) -> None:
        self.plan, self.vlm, self.endpoint, self._run = plan, plan.vlm, plan.endpoint, run
        self.outcome = Outcome(vlm=plan.vlm.name)
        self.pace = Pace(name=self.vlm.name, requests_per_minute=self.endpoint.requests_per_minute)
        self._caller = Caller(self.endpoint, api_key=key)
        self._queue: Iterator[Request] = iter(plan.requests)
        self._budget = Budget(
            self.endpoint.budget_usd, name=f"{self.vlm.name}: endpoint.budget_usd", spent_usd=plan.spent_usd
        )
        self._dearest = Dearest()
        self._probing, self._num_probes = asyncio.Lock(), 0

    async def ask(self) -> None:
        async with self._caller:
            num_workers = min(self.endpoint.concurrency, len(self.plan.requests))
            await asyncio.gather(*(self._work() for _ in range(num_workers)))

    async def _work(self) -> None:
        for request in self._queue:
            if self.pace.is_halted:
                return
            try:
                await self._ask_until_done(request)
            except HaltedError:
                return
            except BudgetSpentError as error:
                self._give_up(f"the next call could overrun {error} (spent so far: ${self._spent(str(error)):.4f})")
                return
            except AttemptError as error:
                if error.scope == "vlm":
                    self._give_up(error.reason)
                    return
                self._failed(request, error.reason)
            except StorageError as error:
                self._run.storage_failed(error)
                return
            except Exception as error:  # raised once the answers under way, here and of other VLMs, are kept
                self._run.failed(error)
                return
            self._run.count()

    async def _ask_until_done(self, request: Request) -> None:
        """Ask one question, again where it failed for a passing reason."""
        try:
            if request.picture.max_side is None:
                body = message_body(self.vlm, request)
            else:  # scaling takes a while; the loop goes on meanwhile
                body = await asyncio.to_thread(message_body, self.vlm, request)
        except DataError as error:
            self._run.store.add_attempt(request.key, reason=str(error), cost_usd=None)
            raise AttemptError(str(error), "question") from None
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.endpoint.retries + 1),
            wait=self.pace.seconds_to_wait,
            sleep=self.pace.pause,
            retry=retry_if_exception(lambda error: isinstance(error, AttemptError) and error.scope == "passing"),
            reraise=True,
        )
        await retrying(self._attempt, request, body)

    async def _attempt(self, request: Request, body: dict[str, object]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await self._wait_for_first_reply(stack)
            worst_usd = worst_case_usd(self.vlm, request) * self._dearest.factor
            bill = await stack.enter_async_context(self._paid_for(worst_usd))
            await self.pace.turn()  # the last wait, so that nothing that waited is sent in a burst
            if self.pace.is_halted:  # while we waited
                raise HaltedError
            if not is_room_left(self._run.store.path):
                raise StorageError(
                    f"the disk with the answer store {self._run.store.path} is nearly full; nothing more is asked. "
                    "Free some space, and run the same command again."
                )
            await self._send(request, body, worst_usd=worst_usd, bill=bill)

    async def _wait_for_first_reply(self, stack: contextlib.AsyncExitStack) -> None:
        """Under a budget, call one at a time until a reply has shown what a call costs, or some calls have failed."""
        if self._has_budget and self._num_probes < _NUM_PROBES:
            await self._probing.acquire()
            if self._num_probes < _NUM_PROBES:
                self._num_probes += 1
                stack.callback(self._probing.release)
            else:
                self._probing.release()

    async def _send(self, request: Request, body: dict[str, object], *, worst_usd: float, bill: "_Bill") -> None:
        """Send the request, keep what comes, and write its cost on the bill."""
        self._run.num_under_way += 1
        try:
            reply = await self._caller.ask(body)
        except AttemptError as error:
            bill.cost_usd = worst_usd if error.may_be_billed else 0.0
            self._note_attempt(request, error.reason, bill.cost_usd)
            self.pace.hold(error.retry_after_s)
            raise
        except asyncio.CancelledError:  # a second Ctrl-C: nobody will know whether it was answered
            self._note_attempt(request, "stopped while it was under way", worst_usd)
            raise
        finally:
            self._run.num_under_way -= 1
        bill.cost_usd = self._cost(reply, request, worst_usd)
        is_new = self._run.keep(self._answer(request, reply, bill.cost_usd))
        served_model = reply.served_model or ""
        if not self.endpoint.is_answered_by(served_model):
            reason = wrong_model(self.endpoint, served_model)
            self._note_attempt(request, reason, 0.0 if is_new else bill.cost_usd)  # else it stands beside the answer
            raise AttemptError(reason, "question")

    def _cost(self, reply: Reply, request: Request, worst_usd: float) -> float:
        """What a reply cost, USD: the worst case where the endpoint counted no tokens."""
        self._num_probes = _NUM_PROBES
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return worst_usd
        cost = self.vlm.cost_usd(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens) or 0.0
        if self._dearest.note(cost, worst_case_usd(self.vlm, request)) and self._has_budget:
            log.warning(
                "%s: a reply cost %.1f times what was taken for the worst case; budgets reckon with that from now on. "
                "Set endpoint.image_tokens to what its pictures count (this prompt: %d tokens)",
                self.vlm.name, self._dearest.factor, reply.prompt_tokens, extra={"vlm": self.vlm.name},
            )  # fmt: skip
        return cost

    def _answer(self, request: Request, reply: Reply, cost: float) -> Answer:
        return Answer(
            key=request.key,
            endpoint=self.endpoint.name,
            model=self.endpoint.model,
            served_model=reply.served_model or "",
            output=reply.output,
            finish_reason=reply.finish_reason,
            request_id=reply.request_id,
            latency_s=round(reply.latency_s, 4),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost_usd=cost if self.vlm.is_priced else None,
            answered_at=time.time(),
        )

    @property
    def _has_budget(self) -> bool:
        return self._budget.limit_usd is not None or self._run.budget.limit_usd is not None

    def _note_attempt(self, request: Request, reason: str, cost: float) -> None:
        try:
            self._run.store.add_attempt(request.key, reason=reason, cost_usd=cost if self.vlm.is_priced else None)
        except StorageError as error:
            self._run.storage_failed(error)

    @contextlib.asynccontextmanager
    async def _paid_for(self, worst_usd: float) -> "AsyncIterator[_Bill]":
        """Reserve the most the call can cost in both budgets, and settle by what it did."""
        bill = _Bill()
        await self._budget.reserve(worst_usd)
        try:
            await self._run.budget.reserve(worst_usd)
        except BaseException:
            self._budget.settle(worst_usd, 0.0)
            raise
        try:
            yield bill
        finally:
            self._budget.settle(worst_usd, bill.cost_usd)
            self._run.budget.settle(worst_usd, bill.cost_usd)

    def _failed(self, request: Request, reason: str) -> None:
        self.outcome.errors[request.key] = reason
        if len(self.outcome.errors) > self.plan.max_errors:
            self._give_up(
                f"{len(self.outcome.errors)} questions failed, more than collect.max_error_share allows "
                f"({self.plan.max_errors}); the last: {reason}"
            )

    def _give_up(self, reason: str) -> None:
        if self.outcome.given_up is None:
            self.outcome.given_up = reason
            self.pace.halt()
            log.warning("%s: asked no more: %s", self.vlm.name, reason, extra={"vlm": self.vlm.name})

    def _spent(self, budget: str) -> float:
        return self._run.budget.spent_usd if budget == self._run.budget.name else self._budget.spent_usd


@dataclass(kw_only=True)
class _Bill:
    cost_usd: float = 0.0


def wrong_model(endpoint: Endpoint, served_model: str) -> str:
    """Why an answer of another model is not taken, and how to take it."""
    return (
        f"answered as '{served_model}', asked was '{endpoint.model}'; if that is the same model, write it into "
        "endpoint.served_as, and nothing is asked again"
    )


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """The loop's handlers leave the defaults behind, not the stage's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
