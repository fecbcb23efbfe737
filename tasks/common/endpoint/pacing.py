"""When a VLM's next request may be sent: so many a minute, none before the time that its server named, jitter between.

All waits end at once when the VLM is halted.
"""

import asyncio
import contextlib
import logging
import random
import time

from tenacity import RetryCallState, wait_exponential_jitter

from tasks.common.endpoint.replies import AttemptError

log = logging.getLogger(__name__)
_SPREAD_S = 1.0  # jitter on what a server asks to wait
_NOTABLE_WAIT_S = 10.0
_back_off = wait_exponential_jitter(multiplier=0.5, max=60, jitter=1)


class HaltedError(Exception):
    """Nothing more is sent."""


class Pace:
    """The pace of one VLM."""

    def __init__(self, *, name: str, requests_per_minute: float | None) -> None:
        """Start at once.

        Args:
            name: the VLM's name, for messages.
            requests_per_minute: at most so many; None for no limit.
        """
        self._name = name
        self._seconds_between = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_turn = self._not_before = 0.0
        self._halt = asyncio.Event()

    @property
    def is_halted(self) -> bool:
        """Whether nothing more may be sent."""
        return self._halt.is_set()

    def halt(self) -> None:
        """Send nothing more; whoever waits stops waiting."""
        self._halt.set()

    def hold(self, seconds: float | None) -> None:
        """The server asked for time: nothing is sent before it is over."""
        if not seconds:
            return
        if seconds > _NOTABLE_WAIT_S and self._not_before < time.monotonic():
            log.info("%s: asks to wait %.0f s", self._name, seconds)
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Wait for a request's turn.

        Raises:
            HaltedError: the VLM was halted meanwhile.
        """
        while True:
            now = time.monotonic()
            start = max(now, self._next_turn)
            if self._seconds_between:
                start = max(start, self._not_before)
                self._next_turn = start + self._seconds_between
            elif self._not_before > now:
                start = self._not_before + random.uniform(0, _SPREAD_S)  # not all that waited at once
            await self.pause(start - now)
            if self._not_before <= time.monotonic():
                return

    async def pause(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            HaltedError: the VLM was halted meanwhile.
        """
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._halt.wait()
        if self._halt.is_set():
            raise HaltedError

    def seconds_to_wait(self, state: RetryCallState) -> float:
        """Before a retry, s: exponential back-off with jitter, and what the server asked for at least."""
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, AttemptError) else None
        return max(_back_off(state), asked_s + random.uniform(0, _SPREAD_S) if asked_s else 0.0)
