"""The VLM blocks of `params.yaml: vlms`: which VLMs there are, in which pool, and what is known of them.

A block is all that a person writes to add a VLM. Blocks come back sorted by name, so that no table and no score depends
on their order in the file.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from arms_model.errors import ConfigError
from arms_model.settings import parse
from tasks.common.params import raw_section

Pool = Literal["base", "new"]
POOLS: tuple[Pool, ...] = ("base", "new")


PLACEHOLDERS = ("question", "options", "language")  # what a prompt template may name in braces
PRICES = ("usd_per_mtok_in", "usd_per_mtok_out", "usd_per_image", "usd_per_call")
_MTOK = 1_000_000
_VERSION = re.compile(r"[-@:](v?\d{3,8}|\d{4}-\d{2}-\d{2}|v\d+(\.\d+)*|latest)")  # gpt-4o-2024-08-06, not llava-34b
_LENGTHS = {"max_tokens", "max_completion_tokens"}  # budgets rest on them
_OURS = {"model", "messages", "stream", "n"}  # what a request sets itself


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a VLM is asked, and how: any server that speaks OpenAI's chat completions.

    What decides an answer is part of its key in the answer store: name, model, prompt, system, generation,
    image_detail, max_side. The rest may change freely without anything being asked again.

    Attributes:
        name: a stable name for the service, e.g. `openai` or `our-vllm`; hosts and ports change, it does not.
        base_url: the URL up to and with `/v1`.
        model: what the service calls the VLM.
        served_as: further model names that it may answer under; the asked name, alone or followed by a version, is
            always accepted.
        api_key_variable: the environment variable that holds the key; None where none is needed.
        system: a system message, or None.
        prompt: template of the user message; may name {question}, {options} (the choices as lettered lines) and
            {language}.
        generation: parameters of the request, e.g. temperature and max_tokens; an explicit null leaves one out. What
            only some services know, e.g. vLLM's top_k, stands under `extra_body`.
        image_detail: `low`, `high`, `auto`, or None to leave it to the service.
        max_side: a picture with a longer side is scaled down to it, px; None sends pictures as they are stored.
        image_tokens: the most tokens that a picture can cost, for budgets; None for an estimate from its size.
        concurrency: requests in flight at once.
        requests_per_minute: at most so many requests a minute; None for no limit.
        timeout_s: seconds until a request counts as failed.
        retries: how often a request that failed for a passing reason is sent again.
        max_answer_bytes: a longer reply is cut off and counts as failed.
        budget_usd: at most so much is spent on this VLM; None for no limit.
    """

    name: str
    base_url: str
    model: str
    served_as: list[str] = field(default_factory=list)
    api_key_variable: str | None = None
    system: str | None = None
    prompt: str = "{question}"
    generation: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    image_detail: Literal["low", "high", "auto"] | None = None
    max_side: int | None = 1024
    image_tokens: int | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0
    retries: int = 5
    max_answer_bytes: int = 1_000_000
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        for text in ("name", "model", "prompt"):
            if not getattr(self, text).strip():
                raise ValueError(f"{text} may not be empty")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url must be like https://host/v1, not {self.base_url!r}")
        if url.username or url.password or url.query:
            raise ValueError("base_url may not carry a key; name an environment variable in api_key_variable")
        _ = url.port  # raises ValueError where it is no port
        if self.api_key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_variable):
            # not shown: it may be the key itself
            raise ValueError("api_key_variable must be the name of an environment variable (A-Z, 0-9, _), not a key")
        unknown = set(re.findall(r"\{(\w*)\}", self.prompt)) - set(PLACEHOLDERS)
        if unknown or "{question}" not in self.prompt:
            raise ValueError(f"prompt must name {{question}} and nothing but {', '.join(PLACEHOLDERS)} in braces")
        if ours := _OURS & set(self.generation):
            raise ValueError(f"generation may not set {', '.join(sorted(ours))}")
        extra = self.generation.get("extra_body") or {}
        if not isinstance(extra, dict) or (_OURS | _LENGTHS) & set(extra):
            names = ", ".join(sorted(_OURS | _LENGTHS))
            raise ValueError(f"generation.extra_body must be a mapping that sets none of {names}")
        for length in _LENGTHS & set(self.generation):
            value = self.generation[length]
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"generation.{length} must be a whole number of 1 or more, not {value!r}")
        limits = ("max_side", "image_tokens", "concurrency", "requests_per_minute", "timeout_s", "max_answer_bytes")
        for limit in limits:
            _refuse_amount(limit, getattr(self, limit), is_more_than_zero=True)
        for amount in ("retries", "budget_usd"):
            _refuse_amount(amount, getattr(self, amount), is_more_than_zero=False)

    def is_answered_by(self, served_model: str) -> bool:
        """Whether a reply that names `served_model` answers for the model that was asked; an empty name does.

        `gpt-4o` may answer as `gpt-4o-2024-08-06`, not as `gpt-4o-mini`; what stands before a slash does not count.
        """
        asked, served = (name.rsplit("/", 1)[-1].lower() for name in (self.model, served_model))
        version = _VERSION.fullmatch(served[len(asked) :]) if served.startswith(asked) else None
        return not served or served == asked or version is not None or served_model in self.served_as

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that an answer may have; None where the request does not say."""
        limit = self.generation.get("max_completion_tokens", self.generation.get("max_tokens"))
        return limit if isinstance(limit, int) else None


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """One block of `vlms`.

    Attributes:
        name: what tables call it; never changes.
        display_name: what pages call it; may change at any time.
        profile_name: what its profile sentence calls it; None for `name`. It reaches the routers: another one retrains.
        provider: who made it.
        pool: `base` for the VLMs the base router knows, `new` for those added since.
        params_b: parameters in billions.
        architecture: e.g. `mixture of experts`.
        language_model: the language model inside.
        vision_model: the vision encoder inside.
        languages: languages it answers in.
        released: month of release, `YYYY-MM`.
        sample: ask it only so many queries; a larger number keeps the smaller one's queries. None: all.
        sample_from: what the sample is drawn from: `all` queries, or those that a VLM of pool base `answered_by_base`
            rightly.
        whole_benchmarks: benchmarks of which it is asked every query, beside the sample.
        benchmarks: ask it only queries of these benchmarks. None: all.
        usd_per_mtok_in: price of a million prompt tokens; None where unknown or self-hosted.
        usd_per_mtok_out: price of a million answer tokens.
        usd_per_image: price of a picture, where one is charged beside tokens.
        usd_per_call: price of a request, where one is charged beside tokens.
        endpoint: where it is asked; None where its answers are recorded.
    """

    name: str
    display_name: str
    provider: str
    pool: Pool
    profile_name: str | None = None
    params_b: float | None = None
    architecture: str | None = None
    language_model: str | None = None
    vision_model: str | None = None
    languages: list[str] | None = None
    released: str | None = None
    sample: int | None = None
    sample_from: Literal["all", "answered_by_base"] = "all"
    whole_benchmarks: list[str] = field(default_factory=list)
    benchmarks: list[str] | None = None
    usd_per_mtok_in: float | None = None
    usd_per_mtok_out: float | None = None
    usd_per_image: float | None = None
    usd_per_call: float | None = None
    endpoint: Endpoint | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.display_name.strip():
            raise ValueError("name and display_name may not be empty")
        if self.profile_name is not None and not self.profile_name.strip():
            raise ValueError("profile_name may not be empty; leave it out to take name")
        if self.released is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", self.released):
            raise ValueError(f"released must be a month as 'YYYY-MM', not {self.released!r}")
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"sample must be 1 or more, not {self.sample}; leave it out to ask all queries")
        if self.sample_from == "answered_by_base" and self.pool == "base":
            raise ValueError("sample_from: answered_by_base is for VLMs of pool new; base VLMs are asked first")
        for unit in ("params_b", *PRICES):
            _refuse_amount(unit, getattr(self, unit), is_more_than_zero=False)
        budget = self.endpoint.budget_usd if self.endpoint else None
        if budget is not None and not self.is_priced:
            raise ValueError(f"endpoint.budget_usd needs a price: set one of {', '.join(PRICES)}")

    @property
    def is_priced(self) -> bool:
        """Whether a price is known; a price of 0 is one."""
        return any(getattr(self, price) is not None for price in PRICES)

    def cost_usd(self, *, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What one answer costs by the block's prices, USD; None where none is known."""
        if not self.is_priced:
            return None
        return (
            (self.usd_per_mtok_in or 0.0) * prompt_tokens / _MTOK
            + (self.usd_per_mtok_out or 0.0) * completion_tokens / _MTOK
            + (self.usd_per_image or 0.0)
            + (self.usd_per_call or 0.0)
        )


def _refuse_amount(name: str, value: float | None, *, is_more_than_zero: bool) -> None:
    """Raise ValueError where `value` is infinite, no number, or too small."""
    if value is None:
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a number, not {value}")
    if is_more_than_zero and value <= 0:
        raise ValueError(f"{name} must be more than 0, not {value}")
    if value < 0:
        raise ValueError(f"{name} may not be negative, not {value}")


def load_vlms() -> list[Vlm]:
    """All VLM blocks of `params.yaml`, sorted by name.

    Raises:
        ConfigError: see `parse_vlms`.
    """
    return parse_vlms(raw_section("vlms"))


def parse_vlms(blocks: Any) -> list[Vlm]:
    """Check VLM blocks as YAML gives them.

    Returns:
        The VLMs, sorted by name.

    Raises:
        ConfigError: no list of blocks, an unknown or mistyped key (named by its path), a VLM named twice, no VLM in
            pool `base`.
    """
    if not isinstance(blocks, list):
        raise ConfigError(f"vlms: expected a list of VLM blocks ('- name: ...'), got {type(blocks).__name__}.")
    vlms = [_parse_block(block, position) for position, block in enumerate(blocks)]
    twice = sorted(name for name, count in Counter(vlm.name for vlm in vlms).items() if count > 1)
    if twice:
        raise ConfigError(
            f"vlms: named twice: {', '.join(twice)}; every VLM has one block, remove or rename the other."
        )
    if not any(vlm.pool == "base" for vlm in vlms):
        raise ConfigError(
            f"vlms: none of the {len(vlms)} VLMs is in pool 'base', but the base router needs at least one; "
            "write 'pool: base' in a block (an empty pool 'new' is fine)."
        )
    return sorted(vlms, key=lambda vlm: vlm.name)


def _parse_block(block: Any, position: int) -> Vlm:
    try:
        return parse(Vlm, block, f"vlms[{position}]")
    except ConfigError as error:
        name = block.get("name") if isinstance(block, dict) else None
        raise ConfigError(f"{error} The block is {name}." if name else str(error)) from None
