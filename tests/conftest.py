"""Toy inputs shared by tests of several rooms: a recorded query set that is made up here, and trees to run stages in.

The recorded set is small but has what the real ones have: several benchmarks, each with its own VLMs; raw outputs in
two, right and wrong only in the third; near-copies of pictures; templates. Which VLM is right depends on the picture
and the question, so a router has something to learn.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filelock import FileLock
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from tasks.common.workspace import make_workspace
from tests.servers import MlflowServer, postgres_cluster

CHECKOUT = Path(__file__).resolve().parents[1]
QUICK_TRAINING = {"epochs": 3, "batching": "by_query", "batch_size": 16, "learning_rate": 0.003}
PAPER = {"colours": "white", "counts": "lightyellow", "verdicts": "lightgrey"}
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220)}
VLMS = [
    {"name": "toy-colour-2b", "display_name": "Toy Colour 2B", "provider": "Toy Lab", "pool": "base", "params_b": 2.0},
    {"name": "toy-count-2b", "display_name": "Toy Count 2B", "provider": "Toy Lab", "pool": "base", "params_b": 2.1},
    {
        "name": "toy-even-7b",
        "display_name": "Toy Even 7B",
        "provider": "Other Lab",
        "pool": "base",
        "params_b": 7.0,
        "benchmarks": ["counts", "verdicts"],
    },
    {"name": "toy-weak-1b", "display_name": "Toy Weak 1B", "provider": "Other Lab", "pool": "base", "params_b": 1.0},
    {"name": "toy-big", "display_name": "Toy Big", "provider": "Closed Lab", "pool": "new", "usd_per_mtok_in": 1.0},
    {
        "name": "toy-shape",
        "display_name": "Toy Shape",
        "provider": "Closed Lab",
        "pool": "new",
        "usd_per_mtok_in": 0.1,
        "benchmarks": ["colours", "verdicts"],
    },
    {"name": "toy-late", "display_name": "Toy Late", "provider": "Closed Lab", "pool": "new", "usd_per_mtok_in": 0.2},
]
BLOCKS = [vlm for vlm in VLMS if vlm["name"] != "toy-late"]  # toy-late has recorded answers and is added by a test


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin no test after the time that `TESTS_UNTIL` says, in seconds since 1970."""
    if time.time() > float(os.environ.get("TESTS_UNTIL", "inf")):
        pytest.skip("not begun: the time that TESTS_UNTIL says is over")


@dataclass(frozen=True)
class Recorded:
    """A recorded folder that a test may spoil."""

    folder: Path

    @property
    def queries(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "queries.parquet")

    @property
    def outputs(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "outputs.parquet")

    def write_queries(self, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.folder / "queries.parquet")

    def write_outputs(self, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.folder / "outputs.parquet")


@dataclass(frozen=True)
class Tree:
    """A copy of the checkout's tree in which stages run as their users run them."""

    folder: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree; `python` and `dvc` are those of the tests' own environment."""
        environment = self.environment() | environment
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900)

    def environment(self) -> dict[str, str]:
        """What stages run in: the tests' own Python first, nothing sent anywhere, no real data by accident."""
        kept = {key: value for key, value in os.environ.items() if key not in ("ARMS_REAL_DATA", "PYTHONPATH")}
        return kept | {
            "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc/tmp/site"),  # else in /var/tmp, and it stays there
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def stage(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one stage without DVC."""
        return self.run("python", "-m", f"tasks.{name}", **environment)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`; gives the names of the stages that really ran, in order."""
        result = self.run("dvc", "repro", *arguments)
        if result.returncode:
            raise RuntimeError(
                f"dvc repro ended with {result.returncode}: {result.stdout[-2000:]}{result.stderr[-4000:]}"
            )
        return [line.split("'")[1] for line in result.stdout.splitlines() if line.startswith("Running stage '")]

    def params(self) -> Any:
        return YAML().load((self.folder / "params.yaml").read_text())

    def write_params(self, params: Any) -> None:
        with (self.folder / "params.yaml").open("w") as handle:
            YAML().dump(params, handle)

    def table(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / f"{name}.parquet")

    def sha256(self, path: str) -> dict[str, str]:
        """The hash of a file, or of every file of a folder."""
        place = self.folder / path
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        if not files:
            raise FileNotFoundError(f"nothing stands at {path}")
        return {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def leftovers(self) -> list[str]:
        """Temporary files and folders that a stopped stage left behind."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*.tmp")]


MakeTree = Callable[..., Tree]  # keywords: a section of params and what it holds


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """A recorded set of the test's own."""
    return write_recorded(tmp_path / "recorded")


@pytest.fixture
def make_tree(tmp_path: Path, recorded: Recorded) -> MakeTree:
    """Make a tree whose params read `recorded`; a keyword replaces a whole section."""

    def make(**sections: Any) -> Tree:
        return write_tree(tmp_path / "tree", recorded=recorded.folder, sections=sections)

    return make


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> tuple[Tree, list[str]]:
    """The one whole `dvc repro` of the test session: its tree, and the stages that ran.

    Of several processes that test at once the first makes it, and each has a copy of its own.
    """
    if worker_id == "master":
        return _run_once(tmp_path_factory.mktemp("finished"))
    common = tmp_path_factory.getbasetemp().parent / "finished"
    stages = common / "stages.json"
    with FileLock(common.with_suffix(".lock")):
        if not stages.exists():
            stages.write_text(json.dumps(_run_once(common)[1]))
    own = tmp_path_factory.mktemp("finished") / "tree"
    shutil.copytree(common / "tree", own, symlinks=True)
    return Tree(own), json.loads(stages.read_text())


def _run_once(folder: Path) -> tuple[Tree, list[str]]:
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder)
    return tree, tree.repro()


@pytest.fixture(scope="session")
def finished_tree(first_run: tuple[Tree, list[str]]) -> Tree:
    """A tree in which all stages ran, to look at or to copy; never write into it."""
    return first_run[0]


@pytest.fixture
def copied_tree(finished_tree: Tree, tmp_path: Path) -> Tree:
    """A copy of the finished tree with its DVC cache, to change at will; it reads the same recorded set."""
    shutil.copytree(finished_tree.folder, tmp_path / "copy", symlinks=True)
    return Tree(tmp_path / "copy")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of MLflow's server; its store is shared by the session's tests, so each takes names of its own."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URI of a PostgreSQL database, shared likewise; skipped where PostgreSQL is not installed."""
    folder = tempfile.mkdtemp(prefix="arms-postgres-")  # not pytest's own folder: the user `postgres` may not enter it
    try:
        with postgres_cluster(Path(folder)) as uri:
            yield uri
    finally:
        shutil.rmtree(folder)


def write_tree(folder: Path, *, recorded: Path, sections: dict[str, Any] | None = None) -> Tree:
    """Copy the checkout's tree to `folder`, with params for a quick run over the recorded set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    preset = folder.parent / "quick.yaml"
    with preset.open("w") as handle:
        YAML().dump(quick_params(recorded) | (sections or {}), handle)
    make_workspace(preset, checkout=CHECKOUT, folder=folder)
    return Tree(folder)


def quick_params(recorded: Path) -> dict[str, Any]:
    """The checkout's params, cut down: toy VLMs, encoders that need no weights, a handful of training steps."""
    params: dict[str, Any] = YAML(typ="safe").load((CHECKOUT / "params.yaml").read_text())
    params["vlms"] = BLOCKS
    params["tracking"] = {"stream": False}
    params["gates"]["split"] = {"min_queries": {"train": 1, "validation": 1, "gate": 1, "test_id": 1, "test_ood": 1}}
    params["queries"] = {"source": "recorded", "folder": str(recorded)}
    params["collect"] = {"source": "recorded", "folder": str(recorded)}
    params["split"]["ood"] = {"benchmarks": [], "tasks": []}
    params["embed"] |= {"questions": {"surface": {"kind": "surface"}}, "pictures": {"pixels": {"kind": "pixels"}}}
    for stage in ("train_base", "train_independent"):
        params[stage] = {
            "question_encoders": ["surface"],
            "picture_encoders": ["pixels"],
            "profile_encoder": "surface",
            "network": {"num_experts": 2, "width": 16, "standardise": True},
            "num_members": 2,
            "bagging": True,
            "memory": {},
            "training": QUICK_TRAINING,
        }
    params["cascade_eval"] = {"draws": 200}
    params["train_incremental"] = {"training": QUICK_TRAINING | {"moving": ["gate", "experts", "head"]}}
    return params


def write_recorded(folder: Path) -> Recorded:
    """Write the recorded set: 90 queries of three benchmarks, 30 each, and what seven toy VLMs answered."""
    rows = [query for number in range(30) for query in _three_queries(folder, number)]
    queries = pl.DataFrame([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows])
    answers = [answer for row in rows for vlm in VLMS for answer in _answer(row, str(vlm["name"]))]
    schema = {"query_id": pl.String, "vlm": pl.String, "output": pl.String, "reference_correct": pl.Boolean}
    recorded = Recorded(folder)
    recorded.write_queries(queries)
    recorded.write_outputs(pl.DataFrame(answers, schema=schema, orient="row"))
    return recorded


def _three_queries(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """The queries that share the drawing `number`: its colour, its count of squares, and right or wrong only."""
    colour = list(COLOURS)[number % 3]
    count = 1 + (number * 7) % 5
    drawing = {"_number": number, "_colour": colour, "_count": count, "language": "en", "licence": "CC0-1.0"}
    yield drawing | _picture(folder, "colours", number, colour, count) | {
        "query_id": f"colours/{number:03d}", "benchmark": "colours", "task": "colour",
        "template": f"colour/{number % 6}",
        "question": f"Drawing {number % 6}: which colour have the squares?\nA. red\nB. green\nC. blue",
        "choices": list(COLOURS), "answer": "ABC"[number % 3], "answer_type": "choice",
    }  # fmt: skip
    yield drawing | _picture(folder, "counts", number, colour, count) | {
        "query_id": f"counts/{number:03d}", "benchmark": "counts", "task": "count", "template": f"count/{number % 6}",
        "question": f"Drawing {number % 6}: how many squares are there? Answer with a number.",
        "choices": None, "answer": str(count), "answer_type": "free",
    }  # fmt: skip
    yield drawing | _picture(folder, "verdicts", number, colour, count) | {
        "query_id": f"verdicts/{number:03d}", "benchmark": "verdicts", "task": "odd or even",
        "template": f"odd/{number % 6}", "question": f"Is the number of squares in drawing {number % 6} even?",
        "choices": None, "answer": "No" if count % 2 else "Yes", "answer_type": "free",
    }  # fmt: skip


def _picture(folder: Path, benchmark: str, number: int, colour: str, count: int) -> dict[str, Any]:
    """Draw `count` squares; two drawings in a row are near-copies and share a group."""
    size = 64 + 2 * number
    picture = Image.new("RGB", (size, 48), PAPER[benchmark])
    for position in range(count):
        left = 3 + 12 * position
        ImageDraw.Draw(picture).rectangle([left, 10 + number % 2, left + 8, 30], fill=COLOURS[colour])
    place = folder / "images" / benchmark / f"{number:03d}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    picture.save(place)
    return {
        "image": f"images/{benchmark}/{number:03d}.png",
        "image_sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "image_group": f"{benchmark}-{number // 2}",
        "source_image_sha256": None,
    }


def _answer(query: dict[str, Any], vlm: str) -> Iterator[tuple[str, str, str | None, bool]]:
    """What a toy VLM answers: nothing where it was not asked; a verdict only where the benchmark keeps no outputs."""
    number, benchmark = query["_number"], query["benchmark"]
    if (benchmark, vlm) in {("colours", "toy-even-7b"), ("counts", "toy-shape")}:
        return  # each benchmark has its own pool
    is_right = {
        "toy-colour-2b": benchmark == "colours" or number % 5 == 0,
        "toy-count-2b": benchmark == "counts" or query["_count"] == 1,
        "toy-even-7b": benchmark == "verdicts" and number % 4 > 0,
        "toy-weak-1b": number % 7 == 0,
        "toy-big": number % 4 > 0,
        "toy-shape": benchmark != "counts" and number % 3 > 0,
        "toy-late": benchmark == "verdicts" or number % 2 == 0,
    }[vlm]
    output = None
    if benchmark == "colours":
        output = f"The answer is ({query['answer'] if is_right else 'ABC'[(number + 1) % 3]})."
    elif benchmark == "counts":
        output = f"There are {query['_count'] + (0 if is_right else 1)} squares."
    yield query["query_id"], vlm, output, is_right
