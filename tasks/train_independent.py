"""Stage `train_independent`: a second router over the new VLMs only; Algorithm 1 joins it with the base router.

Reads queries, split, embed, `label/new` and `profiles/new`, nothing of `train_base`. Writes
`models/train_independent/`, `metrics/train_independent.json`, `curves/train_independent.csv`. Without new VLMs it
writes that there is nothing to learn.

Source: arXiv 2606.08970, section 4.3 (independent training). Run: `python -m tasks.train_independent`, or `dvc repro`.
"""

import sys

from tasks.common.params import load_section, load_seed
from tasks.common.routers import RouterSettings
from tasks.common.stage import run_stage
from tasks.common.training import train_from_scratch

STAGE = "train_independent"


def body() -> None:
    """The stage's work, from files to files."""
    train_from_scratch(STAGE, "new", load_section(STAGE, RouterSettings), seed=load_seed())


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage(STAGE, body)


if __name__ == "__main__":
    sys.exit(main())
