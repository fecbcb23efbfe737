"""The VLM blocks of `params.yaml: vlms`: which VLMs there are, in which pool, and what is known of them.

A block is all that a person writes to add a VLM. Blocks come back sorted by name, so that no table and no score depends
on their order in the file.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from arms_model.errors import ConfigError
from arms_model.settings import parse
from tasks.common.params import raw_section

Pool = Literal["base", "new"]
POOLS: tuple[Pool, ...] = ("base", "new")


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """One block of `vlms`.

    Attributes:
        name: what tables call it; never changes.
        display_name: what people call it; stands in the profile sentence.
        provider: who made it.
        pool: `base` for the VLMs the base router knows, `new` for those added since.
        params_b: parameters in billions.
        architecture: e.g. `mixture of experts`.
        language_model: the language model inside.
        vision_model: the vision encoder inside.
        languages: languages it answers in.
        released: month of release, `YYYY-MM`.
        sample: ask it only so many queries; a larger number keeps the smaller one's queries. None: all.
        benchmarks: ask it only queries of these benchmarks. None: all.
        usd_per_mtok_in: price of a million prompt tokens; None where unknown or self-hosted.
        usd_per_mtok_out: price of a million answer tokens.
    """

    name: str
    display_name: str
    provider: str
    pool: Pool
    params_b: float | None = None
    architecture: str | None = None
    language_model: str | None = None
    vision_model: str | None = None
    languages: list[str] | None = None
    released: str | None = None
    sample: int | None = None
    benchmarks: list[str] | None = None
    usd_per_mtok_in: float | None = None
    usd_per_mtok_out: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.display_name.strip():
            raise ValueError("name and display_name may not be empty")
        if self.released is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", self.released):
            raise ValueError(f"released must be a month as 'YYYY-MM', not {self.released!r}")
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"sample must be 1 or more, not {self.sample}; leave it out to ask all queries")
        for unit in ("params_b", "usd_per_mtok_in", "usd_per_mtok_out"):
            value = getattr(self, unit)
            if value is not None and value < 0:
                raise ValueError(f"{unit} may not be negative, not {value}")


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
    vlms = [parse(Vlm, block, f"vlms[{position}]") for position, block in enumerate(blocks)]
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
