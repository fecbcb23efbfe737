"""Stage `train_base`: the base router, trained on all labelled pairs of the base pool.

Reads queries, split, embed, `label/base` and `profiles/base`: nothing of the new pool, so a new VLM leaves it
untouched. Writes `models/train_base/`, `metrics/train_base.json`, `curves/train_base.csv`. A stopped run goes on from
its last checkpoint under `.arms/checkpoints/`.

Source: arXiv 2606.08970, section 4.3, equation 1. Run: `python -m tasks.train_base`, or `dvc repro train_base`.
"""

import sys

from tasks.common.params import load_section, load_seed
from tasks.common.routers import RouterSettings
from tasks.common.stage import run_stage
from tasks.common.training import train_from_scratch

STAGE = "train_base"


def body() -> None:
    """The stage's work, from files to files."""
    train_from_scratch(STAGE, "base", load_section(STAGE, RouterSettings), seed=load_seed())


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage(STAGE, body)


if __name__ == "__main__":
    sys.exit(main())
