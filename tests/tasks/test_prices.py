"""Costs at least and at most, and budgets that no call can overrun."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from arms_model.errors import ConfigError
from tasks.common.endpoint.prices import (
    Budget,
    BudgetSpentError,
    expected_usd,
    picture_tokens,
    refuse_budget_without_prices,
    worst_case_usd,
)
from tasks.common.endpoint.requests import Picture, Request
from tasks.common.vlms import Vlm, parse_vlms


def vlm(endpoint: dict[str, Any] | None = None, **prices: float) -> Vlm:
    block = {"name": "toy", "display_name": "Toy", "provider": "Toy Lab", "pool": "base"} | prices
    block |= {"endpoint": {"name": "lab", "base_url": "http://127.0.0.1:1/v1", "model": "m"} | (endpoint or {})}
    return parse_vlms([block])[0]


def request(size: tuple[int, int] = (512, 512), prompt: str = "Wie groß?") -> Request:
    picture = Picture(path=Path("a.png"), sha256="", media_type="image/png", size=size, max_side=None, max_pixels=10**6)
    return Request(query_id="q", prompt=prompt, picture=picture, key="k")


def test_cost_is_the_sum_of_all_prices() -> None:
    priced = vlm(usd_per_mtok_in=2.0, usd_per_mtok_out=10.0, usd_per_image=0.001, usd_per_call=0.01)
    assert priced.cost_usd(prompt_tokens=1000, completion_tokens=100) == pytest.approx(0.002 + 0.001 + 0.001 + 0.01)
    assert vlm(usd_per_call=0.0).cost_usd(prompt_tokens=1000, completion_tokens=100) == 0.0
    assert vlm().cost_usd(prompt_tokens=1000, completion_tokens=100) is None


def test_worst_case_counts_a_token_a_byte_and_an_answer_of_full_length() -> None:
    priced = vlm({"generation": {"max_tokens": 50}, "image_tokens": 300}, usd_per_mtok_in=1.0, usd_per_mtok_out=4.0)
    num_bytes = len("Wie groß?".encode())  # 10: ß is two
    assert worst_case_usd(priced, request()) == pytest.approx((num_bytes + 64 + 300 + 4 * 50) / 1e6)
    expected = expected_usd(priced, request(), prompt_tokens=None, completion_tokens=None)
    assert expected is not None
    assert expected < worst_case_usd(priced, request())


@pytest.mark.parametrize(
    ("size", "tokens"), [((512, 512), 85 + 170 + 106), ((100, 100), 255), ((2048, 1024), 2797), ((28, 28), 255)]
)
def test_picture_tokens_are_the_dearest_usual_counting(size: tuple[int, int], tokens: int) -> None:
    # 512 x 512: 255 by tiles, 361 by patches of 28 px, 350 by 750 px a token; the largest stands
    assert picture_tokens(vlm(), request(size)) == tokens


def test_budget_without_a_price_or_a_limit_of_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="toy has no price"):
        refuse_budget_without_prices(vlm(), where="collect.budget_usd")
    with pytest.raises(ConfigError, match="max_tokens"):
        unlimited = vlm({"generation": {}}, usd_per_mtok_in=0.5, usd_per_mtok_out=1.0)
        refuse_budget_without_prices(unlimited, where="collect.budget_usd")
    with pytest.raises(ConfigError, match="only one of usd_per_mtok_in and usd_per_mtok_out"):
        refuse_budget_without_prices(vlm(usd_per_mtok_in=1.0), where="collect.budget_usd")
    refuse_budget_without_prices(vlm({"generation": {}}, usd_per_call=1.0), where="collect.budget_usd")


def test_budget_of_a_block_without_a_price_is_refused_as_it_is_read() -> None:
    with pytest.raises(ConfigError, match="budget_usd needs a price"):
        vlm({"budget_usd": 5.0})


def test_budget_never_lets_more_in_flight_than_it_could_pay_for() -> None:
    budget = Budget(1.0, name="b", spent_usd=0.25)
    most = 0.0

    async def call() -> bool:
        nonlocal most
        try:
            await budget.reserve(0.2)
        except BudgetSpentError:
            return False
        most = max(most, budget.spent_usd + budget._reserved_usd)
        await asyncio.sleep(0)
        budget.settle(0.2, 0.1)
        return True

    async def run() -> list[bool]:
        return await asyncio.gather(*(call() for _ in range(20)))

    made = asyncio.run(run())
    assert most <= 1.0
    assert sum(made) == 6  # 0.25 + 6 x 0.1 = 0.85, and a seventh could cost 0.2
    assert budget.spent_usd == pytest.approx(0.85)


def test_budget_without_a_limit_lets_all_through() -> None:
    budget = Budget(None, name="b")
    asyncio.run(budget.reserve(1e9))
    budget.settle(1e9, 5.0)
    assert budget.spent_usd == 5.0
