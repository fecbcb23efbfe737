"""What the flow costs beside DVC: a run with nothing to do, in a tree where all stages have run.

    python -m benchmarks.flows                # after `make run`, in the checkout
    python -m benchmarks.flows --turns 5

Each turn runs `dvc repro` and `python -m flows.train_arms full`, without a server, one after the other.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "dvc repro": [sys.executable, "-m", "dvc", "repro", "--quiet"],
    "flow": [sys.executable, "-m", "flows.train_arms", "full", "--propose"],
}


def seconds(command: list[str]) -> float:
    """How long a command takes, s."""
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flows", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    for command in COMMANDS.values():  # Prefect makes its database, the champion is compared once
        seconds(command)
    took = [[seconds(command) for command in COMMANDS.values()] for _ in range(turns)]
    for number, name in enumerate(COMMANDS):
        figures = [turn[number] for turn in took]
        print(f"{name:10} {statistics.median(figures):6.1f} s   ({min(figures):.1f} to {max(figures):.1f})")
    print(f"difference {statistics.median(flow - plain for plain, flow in took):6.1f} s")


if __name__ == "__main__":
    main()
