"""What answers cost, at least and at most, and budgets that are never overrun.

A budget limits what the pairs that params ask for cost in all, whenever they were asked: what earlier runs paid for
them counts, failed attempts too. So a command that is run again does not spend the budget again.
"""

import asyncio
import math

from arms_model.errors import ConfigError
from tasks.common.endpoint.requests import Request
from tasks.common.vlms import PRICES, Vlm

_OVERHEAD_TOKENS = 64  # what chat templates add to the messages' own tokens
_BYTES_PER_TOKEN = 4  # of usual text, for expectations; a token is at least one byte, for the worst case


def worst_case_usd(vlm: Vlm, request: Request) -> float:
    """The most that asking `request` once should cost, USD; 0 where no price is known.

    A token is at least a byte of the text; the answer is as long as max_tokens allows; the picture counts what
    `picture_tokens` says, which a provider of another mind can exceed: `Dearest` learns by how much.
    """
    endpoint = vlm.endpoint
    text = request.prompt + ((endpoint.system or "") if endpoint else "")
    prompt_tokens = len(text.encode()) + _OVERHEAD_TOKENS + picture_tokens(vlm, request)
    max_tokens = (endpoint.max_tokens if endpoint else None) or 0
    return vlm.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=max_tokens) or 0.0


def expected_usd(
    vlm: Vlm, request: Request, *, prompt_tokens: float | None, completion_tokens: float | None
) -> float | None:
    """What asking `request` should cost, USD: by the means seen so far, else by its length and half of max_tokens."""
    max_tokens = (vlm.endpoint.max_tokens if vlm.endpoint else None) or 0
    by_length = len(request.prompt.encode()) / _BYTES_PER_TOKEN + picture_tokens(vlm, request)
    return vlm.cost_usd(
        prompt_tokens=by_length if prompt_tokens is None else prompt_tokens,
        completion_tokens=max_tokens / 2 if completion_tokens is None else completion_tokens,
    )


def picture_tokens(vlm: Vlm, request: Request) -> int:
    """The most tokens the picture counts: the block's `image_tokens`, else the dearest of the usual countings.

    Those are 85 and 170 for each tile of 512 px, a token for each 28 x 28 px, and a token for each 750 px.
    """
    if vlm.endpoint is not None and vlm.endpoint.image_tokens is not None:
        return vlm.endpoint.image_tokens
    width, height = request.picture.size
    tiles = 85 + 170 * math.ceil(width / 512) * math.ceil(height / 512)
    patches = math.ceil(width / 28) * math.ceil(height / 28)
    return max(tiles, patches, math.ceil(width * height / 750))


def refuse_budget_without_prices(vlm: Vlm, *, where: str) -> None:
    """Raise ConfigError where a budget is set that this block's cost cannot be held against.

    Args:
        vlm: a VLM that is to be asked.
        where: the budget's path in params.
    """
    if not vlm.is_priced:
        raise ConfigError(
            f"{where} is set, but {vlm.name} has no price; write one of {', '.join(PRICES)} into its block "
            "(`usd_per_call: 0` where it costs nothing), or set no budget."
        )
    one_price = (vlm.usd_per_mtok_in is None) != (vlm.usd_per_mtok_out is None)
    if one_price:
        raise ConfigError(
            f"{where} is set, but {vlm.name} has only one of usd_per_mtok_in and usd_per_mtok_out; write both (0 where "
            "one costs nothing), or set no budget."
        )
    if vlm.usd_per_mtok_out and vlm.endpoint is not None and vlm.endpoint.max_tokens is None:
        raise ConfigError(
            f"{where} is set, but {vlm.name} may answer at any length; write max_tokens (or max_completion_tokens) "
            "into its endpoint.generation, or set no budget."
        )


class Dearest:
    """By how much replies cost more than their worst case: providers may count pictures otherwise than assumed."""

    def __init__(self) -> None:
        self.factor = 1.0

    def note(self, cost: float, worst_usd: float) -> bool:
        """Take a reply's cost in; gives whether it was dearer than any before, and than its worst case."""
        if not worst_usd or cost <= worst_usd * self.factor * (1 + 1e-9):
            return False
        self.factor = cost / worst_usd
        return True


class BudgetSpentError(Exception):
    """The next call could overrun the budget, and nothing is in flight that could come back cheaper."""


class Budget:
    """A limit in USD. Each call reserves the most it can cost, and gives back what it did not."""

    def __init__(self, limit_usd: float | None, *, name: str, spent_usd: float = 0.0) -> None:
        """Set the limit.

        Args:
            limit_usd: the limit; None for none.
            name: whose budget it is, for messages.
            spent_usd: what was spent before.
        """
        self.limit_usd, self.name, self.spent_usd = limit_usd, name, spent_usd
        self._reserved_usd = 0.0
        self._in_flight = 0
        self._settled = asyncio.Event()

    async def reserve(self, worst_usd: float) -> None:
        """Wait until the call fits.

        Raises:
            BudgetSpentError: it never will.
        """
        while not self._fits(worst_usd):
            if not self._in_flight:
                raise BudgetSpentError(self.name)
            self._settled.clear()
            await self._settled.wait()
        self._reserved_usd += worst_usd
        self._in_flight += 1

    def settle(self, worst_usd: float, cost: float) -> None:
        """The call that reserved `worst_usd` has cost `cost`."""
        self._in_flight -= 1
        self._reserved_usd = self._reserved_usd - worst_usd if self._in_flight else 0.0  # no rounding errors pile up
        self.spent_usd += cost
        self._settled.set()

    def _fits(self, worst_usd: float) -> bool:
        return self.limit_usd is None or self.spent_usd + self._reserved_usd + worst_usd <= self.limit_usd + 1e-12
