"""Stage `profiles`: one sentence per VLM from `params.yaml: vlms`, a table per pool.

The tables hold no prices and no display names: a change of those must not retrain anything. They stand apart per pool,
so that a new VLM leaves `profiles/base.parquet` and with it the base router untouched.

Run: `python -m tasks.profiles`; reads `params.yaml`, writes `profiles/{base,new}.parquet` and `gates/profiles.json`.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arms_model.profiles import Variant, VlmFacts, profile_sentence
from tasks.common.files import folder_written_whole
from tasks.common.gates import hold
from tasks.common.invariants.profiles import checks
from tasks.common.params import NoBounds, load_gate, load_section
from tasks.common.stage import run_stage
from tasks.common.tables import SCHEMAS, write_table
from tasks.common.vlms import POOLS, Pool, Vlm, load_vlms

log = logging.getLogger(__name__)
FOLDER = Path("profiles")


@dataclass(frozen=True, kw_only=True)
class ProfilesSettings:
    """Section `profiles`.

    Attributes:
        sentence: `full`, or `name` for the name alone.
    """

    sentence: Variant = "full"


def profiles(vlms: Sequence[Vlm], *, sentence: Variant) -> dict[Pool, pl.DataFrame]:
    """The table `profiles` of each pool."""
    frame = pl.DataFrame([_row(vlm, sentence) for vlm in vlms], schema=SCHEMAS["profiles"])
    return {pool: frame.filter(pl.col("pool") == pool) for pool in POOLS}


def _row(vlm: Vlm, sentence: Variant) -> dict[str, object]:
    facts = VlmFacts(
        name=vlm.profile_name or vlm.name,
        provider=vlm.provider,
        params_b=vlm.params_b,
        architecture=vlm.architecture,
        language_model=vlm.language_model,
        vision_model=vlm.vision_model,
        languages=tuple(vlm.languages or ()),
        released=vlm.released,
    )
    return {
        "vlm": vlm.name,
        "provider": vlm.provider,
        "pool": vlm.pool,
        "profile": profile_sentence(facts, variant=sentence),
        "params_b": vlm.params_b,
        "language_model": vlm.language_model,
        "vision_model": vlm.vision_model,
        "released": vlm.released,
    }


def body() -> None:
    """Read params, make both tables, hold their gate, write them whole or not at all."""
    settings = load_section("profiles", ProfilesSettings)
    load_gate("profiles", NoBounds)
    tables = profiles(load_vlms(), sentence=settings.sentence)
    findings = hold("profiles", checks(tables))
    with folder_written_whole(FOLDER) as folder:
        for pool in POOLS:
            write_table(folder / f"{pool}.parquet", tables[pool], "profiles")
    findings.write()
    log.info("%s", ", ".join(f"{tables[pool].height} VLMs in pool {pool}" for pool in POOLS))


def main() -> int:
    """Run the stage; returns the exit code."""
    return run_stage("profiles", body)


if __name__ == "__main__":
    sys.exit(main())
