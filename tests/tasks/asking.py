"""A folder in which `collect` asks a server of the test's own: queries are there, params name toy VLMs only.

Stages run from the checkout's own code, in processes of their own, as people run them.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

COLLECT = (sys.executable, "-m", "tasks.collect")
STORE = ".arms/answers.sqlite"


@dataclass(frozen=True)
class AskingFolder:
    """The folder; `prepare` says what is asked, `collect` asks it."""

    folder: Path

    def prepare(self, *vlms: dict[str, Any], **collect: Any) -> None:
        """Write params; keywords go into section `collect`."""
        settings = {"source": "endpoint", "max_error_share": 0.0} | collect
        with (self.folder / "params.yaml").open("w") as handle:
            sections = {"base": {"seed": 0}, "collect": settings, "vlms": list(vlms), "gates": {"collect": {}}}
            YAML().dump(sections, handle)

    def collect(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the stage to its end."""
        command, environment = [*COLLECT, *arguments], self.environment() | environment
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Start the stage, or another command, and do not wait for it."""
        return subprocess.Popen(
            command or COLLECT, cwd=self.folder, env=self.environment() | environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The tests' own, without keys that a person may have set."""
        return {name: value for name, value in os.environ.items() if "API_KEY" not in name and name != "ARMS_REAL_DATA"}

    def table(self, pool: str = "base") -> pl.DataFrame:
        """What was sealed."""
        return pl.read_parquet(self.folder / f"collect/{pool}.parquet")

    def stored(self, statement: str = "select count(*) from answers") -> Any:
        """What a query to the answer store gives: the first column of the first row."""
        with closing(sqlite3.connect(self.folder / STORE)) as connection:
            return connection.execute(statement).fetchone()[0]

    def forget_sealed(self) -> None:
        """Remove the sealed tables, as DVC does before it runs the stage."""
        shutil.rmtree(self.folder / "collect", ignore_errors=True)

    def everything_written(self) -> bytes:
        """The bytes of all files that a run may have written, one after the other."""
        places = [place for place in sorted(self.folder.rglob("*")) if place.is_file()]
        return b"".join(place.read_bytes() for place in places if "queries" not in place.parts)


def vlm(name: str, base_url: str, *, endpoint: dict[str, Any] | None = None, **block: Any) -> dict[str, Any]:
    """A VLM's block; `endpoint` and keywords replace what stands here."""
    settings = {
        "name": "toy", "base_url": base_url, "model": name, "timeout_s": 5, "retries": 1, "concurrency": 4,
        "generation": {"temperature": 0, "max_tokens": 16},
    }  # fmt: skip
    common = {"name": name, "display_name": name.title(), "provider": "Toy Lab", "pool": "base"}
    return common | block | {"endpoint": settings | (endpoint or {})}


def words(text: str) -> str:
    """A message without its line breaks."""
    return " ".join(text.split())


def asked_twice(questions: Sequence[object]) -> list[object]:
    """What stands in `questions` more than once."""
    return sorted({question for question in questions if questions.count(question) > 1}, key=str)
