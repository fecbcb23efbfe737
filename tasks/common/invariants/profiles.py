"""What must hold of the profiles, both pools together. `tasks.common.gates` says how it is held."""

from collections.abc import Mapping

import polars as pl

from tasks.common.gates import Check, Invariant, not_empty, table_view, unique
from tasks.common.vlms import Pool

VLM = Invariant(
    name="profiles_vlm_unique",
    sentence="Every VLM has one profile, in one pool.",
    remedy="Remove or rename one of the blocks under `vlms`.",
)
SENTENCE = Invariant(
    name="profiles_sentence_not_empty",
    sentence="Every VLM's profile has a sentence.",
    bounds="more than white space",
    remedy="Give the VLM a display name and a provider.",
)
UNIQUE = Invariant(
    name="profiles_sentence_unique",
    sentence="No two VLMs have the same profile sentence: a router could not tell them apart.",
    remedy="Give them different display names.",
)
INVARIANTS = (VLM, SENTENCE, UNIQUE)


def checks(tables: Mapping[Pool, pl.DataFrame]) -> list[Check]:
    """The checks of stage `profiles`; `tables` are its tables by pool."""
    profiles = pl.concat(list(tables.values()))
    return [
        unique(VLM, profiles, key=["vlm"], shown=["pool"]),
        Check(invariant=SENTENCE, rule=not_empty("profile"), view=table_view("profiles", profiles, key=["vlm"])),
        unique(UNIQUE, profiles, key=["profile"], shown=["vlm"]),
    ]
