"""A VLM's profile: what is known of it, said in one sentence that the text encoder reads.

Source: the paper's profiles name a VLM, its parameter count, architecture, language model and vision model; provider,
languages and release month are ours. A field that is not known is left out of the sentence, never written as a guess.
Prices stay out, and so does what people call the VLM on
pages: neither may change a router (docs/decisions/0010-display-names.md).
"""

import re
from dataclasses import dataclass
from typing import Literal

from arms_model.errors import ConfigError

Variant = Literal["full", "name"]
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VlmFacts:
    """What may stand in a profile sentence.

    Attributes:
        name: what the sentence calls the VLM; it may not change when pages call it something else.
        provider: who made it; the empty string where that is not known.
        params_b: parameters in billions; None where not disclosed.
        architecture: e.g. `mixture of experts`; None where not known.
        language_model: the language model inside; None where not known.
        vision_model: the vision encoder inside; None where not known.
        languages: languages it is known to answer in.
        released: month of release as `YYYY-MM`; None where not known.
    """

    name: str
    provider: str = ""
    params_b: float | None = None
    architecture: str | None = None
    language_model: str | None = None
    vision_model: str | None = None
    languages: tuple[str, ...] = ()
    released: str | None = None


def profile_sentence(facts: VlmFacts, *, variant: Variant = "full") -> str:
    """Say what is known of a VLM in one sentence.

    Args:
        facts: what is known.
        variant: `full`, or `name` for the name alone (one reading of the ablation 'without profiles').

    Returns:
        The sentence; the same facts give the same sentence.

    Raises:
        ConfigError: the name is empty, or the release month is no `YYYY-MM`.

    >>> profile_sentence(VlmFacts(name="Toy-VL 2B", provider="Toy Lab", params_b=2.2, released="2024-08"))
    'Toy-VL 2B is a vision-language model by Toy Lab with 2.2 billion parameters, released in August 2024.'
    >>> profile_sentence(VlmFacts(name="Toy-VL 2B"))
    'Toy-VL 2B is a vision-language model.'
    """
    name = facts.name.strip()
    if not name:
        raise ConfigError(
            "the name is empty; a profile sentence needs one. Write name or profile_name in the VLM's block of `vlms`."
        )
    if variant == "name":
        return name
    start = f"{name} is a vision-language model" + (f" by {facts.provider}" if facts.provider else "")
    inside = _listed(_parts_inside(facts))
    released = f"released in {_month_in_words(facts.released)}" if facts.released else ""
    first = f"{start} with {inside}" if inside else start
    languages = f"answering in {_listed(list(facts.languages))}" if facts.languages else ""
    return ", ".join(part for part in (first, languages, released) if part) + "."


def _parts_inside(facts: VlmFacts) -> list[str]:
    """The parts of the sentence that follow 'with', known ones only."""
    parts = []
    if facts.params_b is not None:
        parts.append(f"{facts.params_b:g} billion parameters")
    if facts.architecture:
        parts.append(f"the architecture {facts.architecture}")
    if facts.language_model:
        parts.append(f"the language model {facts.language_model}")
    if facts.vision_model:
        parts.append(f"the vision model {facts.vision_model}")
    return parts


def _listed(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _month_in_words(month: str) -> str:
    """`2024-08` as `August 2024`."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise ConfigError(
            f"released: got {month!r}, expected a month as 'YYYY-MM', e.g. '2024-08'; correct it or leave it out."
        )
    return f"{_MONTHS[int(month[5:]) - 1]} {month[:4]}"
