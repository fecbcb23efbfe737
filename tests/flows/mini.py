"""A DVC tree of four stages that copy files: what `flows` does with a graph shows there in a second."""

import subprocess
import sys
from pathlib import Path

DVC_YAML = """
stages:
  first: {cmd: cp source.txt first.txt, deps: [source.txt], outs: [first.txt]}
  train:
    cmd: cat first.txt labels.txt > train.txt
    meta: {pool: gpu, timeout_h: 0.5, retries: 2}
    deps: [first.txt, labels.txt]
    params: [train]
    outs: [train.txt]
  label: {cmd: sort first.txt > labels.txt, deps: [first.txt], params: [vlms], outs: [labels.txt]}
  last: {cmd: "cp train.txt last.txt", deps: [train.txt], outs: [last.txt]}
  apart: {cmd: cp source.txt apart.txt, deps: [source.txt], outs: [apart.txt]}
"""


def write_mini_tree(folder: Path) -> Path:
    """Make the tree; nothing has run in it."""
    folder.mkdir()
    dvc(folder, "init", "--no-scm", "--quiet")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("train: 1\nvlms: [a, b]\n")
    (folder / "source.txt").write_text("b\na\n")
    return folder


def dvc(folder: Path, *words: str) -> str:
    """Run DVC there; gives what it printed."""
    command = [sys.executable, "-m", "dvc", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return result.stdout
