"""The pipeline as people run it: `dvc repro` in a copy of the tree, and each stage stopped at its worst moment.

One whole run is shared by the session. The worst moment is when a stage has written its result beside its place and is
about to rename it: an audit hook sees that very call and sends the process a real SIGINT.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from tasks.common.params import STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Tree

NEW_POOL_STAGES = {"train_incremental", "train_independent", "cascade_eval", "report", "register"}
AFTER_A_NEW_VLM = {"profiles", "collect", "label"} | NEW_POOL_STAGES
UNTOUCHED = ("profiles/base.parquet", "collect/base.parquet", "label/base.parquet", "models/train_base")
LATE = {"name": "toy-late", "display_name": "Toy Late", "provider": "Closed Lab", "pool": "new"}

INTERRUPT_AT_RENAME = textwrap.dedent("""
    import os, runpy, signal, sys
    stage, outs = sys.argv[1], tuple(os.path.abspath(out) for out in sys.argv[2:])
    def hook(event, arguments):
        if event == "os.rename":
            target = os.path.abspath(os.fsdecode(arguments[1]))
            if any(out == target or out.startswith(target + os.sep) for out in outs):
                os.kill(os.getpid(), signal.SIGINT)
    sys.addaudithook(hook)
    sys.path.insert(0, os.getcwd())
    del sys.argv[1:]
    runpy.run_module(f"tasks.{stage}", run_name="__main__")
""")
LIMIT_FILE_SIZE = textwrap.dedent("""
    import importlib, os, resource, sys
    sys.path.insert(0, os.getcwd())
    main = importlib.import_module(f"tasks.{sys.argv[1]}").main
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
    del sys.argv[1:]
    sys.exit(main())
""")


def outs_of(tree: Tree, stage: str) -> list[str]:
    """Everything that dvc.yaml says the stage writes."""
    entry = YAML(typ="safe").load((tree.folder / "dvc.yaml").read_text())["stages"][stage]
    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    return [next(iter(out)) if isinstance(out, dict) else out for out in outs]


def remove_outs(tree: Tree, stage: str) -> list[str]:
    """Remove what the stage wrote, as DVC does before it runs one, and what it keeps to go on from."""
    outs = outs_of(tree, stage)
    for out in outs:
        path = tree.folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(tree.folder / ".arms", ignore_errors=True)
    return outs


def test_repro_runs_every_stage_once_and_writes_every_output(first_run: tuple[Tree, list[str]]) -> None:
    tree, ran = first_run
    assert sorted(ran) == sorted(STAGES)
    assert all((tree.folder / out).exists() for stage in STAGES for out in outs_of(tree, stage))
    assert not tree.leftovers()


def test_second_repro_runs_nothing(finished_tree: Tree) -> None:
    assert finished_tree.repro() == []


def test_second_fresh_run_gives_the_same_bytes(copied_tree: Tree, finished_tree: Tree) -> None:
    shutil.rmtree(copied_tree.folder / ".dvc/cache")
    shutil.rmtree(copied_tree.folder / ".arms")
    (copied_tree.folder / "dvc.lock").unlink()
    assert sorted(copied_tree.repro()) == sorted(STAGES)
    for stage in STAGES:
        for out in outs_of(finished_tree, stage):
            assert copied_tree.sha256(out) == finished_tree.sha256(out), out


def test_new_vlm_runs_the_new_pool_and_leaves_the_base_router_byte_for_byte(
    copied_tree: Tree, finished_tree: Tree
) -> None:
    params = copied_tree.params()
    params["vlms"].append(LATE)
    copied_tree.write_params(params)
    assert set(copied_tree.repro()) == AFTER_A_NEW_VLM
    for path in UNTOUCHED:
        assert copied_tree.sha256(path) == finished_tree.sha256(path), path
    assert "toy-late" in copied_tree.table("label/new")["vlm"].to_list()
    assert copied_tree.repro() == []


def test_price_retrains_nothing(copied_tree: Tree, finished_tree: Tree) -> None:
    params = copied_tree.params()
    block = next(vlm for vlm in params["vlms"] if vlm["name"] == "toy-big")
    block["usd_per_mtok_in"] = 12.5
    copied_tree.write_params(params)
    # profiles and collect read the blocks, and write the same tables; the accuracy-cost plane becomes another
    assert set(copied_tree.repro()) == {"profiles", "collect", "cascade_eval", "report", "register"}
    for path in ("profiles", "collect", "label", "models", "held_out", "cascade_eval/table.csv"):
        assert copied_tree.sha256(path) == finished_tree.sha256(path), path
    assert copied_tree.sha256("cascade_eval/cost.csv") != finished_tree.sha256("cascade_eval/cost.csv")


def test_display_name_retrains_nothing(copied_tree: Tree, finished_tree: Tree) -> None:
    params = copied_tree.params()
    for vlm in params["vlms"]:
        vlm["display_name"] = f"Renamed {vlm['name']}"
    copied_tree.write_params(params)
    # the stages that read the blocks run, and write the same tables; the report's page shows the new names
    assert set(copied_tree.repro()) == {"profiles", "collect", "cascade_eval", "report", "register"}
    for path in ("profiles", "collect", "label", "models", "held_out", "cascade_eval"):
        assert copied_tree.sha256(path) == finished_tree.sha256(path), path
    assert "Renamed toy-big" in (copied_tree.folder / "report/report.html").read_text()


def test_profile_name_retrains_what_learned_that_vlm(copied_tree: Tree, finished_tree: Tree) -> None:
    params = copied_tree.params()
    next(vlm for vlm in params["vlms"] if vlm["name"] == "toy-big")["profile_name"] = "Toy Bigger"
    copied_tree.write_params(params)
    assert set(copied_tree.repro()) == {"profiles", "collect"} | NEW_POOL_STAGES
    for path in UNTOUCHED:
        assert copied_tree.sha256(path) == finished_tree.sha256(path), path


def test_empty_new_pool_runs_through_and_says_there_is_nothing_to_learn(copied_tree: Tree, finished_tree: Tree) -> None:
    params = copied_tree.params()
    params["vlms"] = [vlm for vlm in params["vlms"] if vlm["pool"] == "base"]
    copied_tree.write_params(params)
    assert set(copied_tree.repro()) == AFTER_A_NEW_VLM
    assert copied_tree.table("label/new").height == copied_tree.table("profiles/new").height == 0
    for path in UNTOUCHED:
        assert copied_tree.sha256(path) == finished_tree.sha256(path), path
    for stage in ("train_incremental", "train_independent"):
        assert "nothing_to_learn" in (copied_tree.folder / f"metrics/{stage}.json").read_text()


def test_changed_recording_reruns_what_reads_it(copied_tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "recorded"
    shutil.copytree(copied_tree.params()["collect"]["folder"], source)
    params, dvc = copied_tree.params(), YAML().load((copied_tree.folder / "dvc.yaml").read_text())
    old = params["collect"]["folder"]
    for stage in ("queries", "collect"):
        params[stage]["folder"] = str(source)
        deps = dvc["stages"][stage]["deps"]
        dvc["stages"][stage]["deps"] = [dep.replace(old, str(source)) for dep in deps]
    copied_tree.write_params(params)
    with (copied_tree.folder / "dvc.yaml").open("w") as handle:
        YAML().dump(dvc, handle)
    # the same files at another place: both stages run, their outputs come out the same, nothing after them runs
    assert set(copied_tree.repro()) == {"queries", "collect"}


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_stage_leaves_nothing_and_the_next_run_ends_as_if_never_stopped(
    stage: str, copied_tree: Tree, finished_tree: Tree
) -> None:
    outs = remove_outs(copied_tree, stage)
    result = copied_tree.run("python", "-c", INTERRUPT_AT_RENAME, stage, *outs)
    assert result.returncode == 130, result.stderr
    assert f"{stage}: stopped by Ctrl-C." in result.stderr
    assert "Traceback" not in result.stderr
    assert not copied_tree.leftovers()
    assert not [out for out in outs if (copied_tree.folder / out).exists()]
    assert copied_tree.stage(stage).returncode == 0
    for out in outs:
        assert copied_tree.sha256(out) == finished_tree.sha256(out), out


def test_ctrl_c_while_repro_trains_ends_both_and_leaves_nothing(copied_tree: Tree) -> None:
    params = copied_tree.params()
    params["train_base"]["training"]["epochs"] = 1_000_000
    copied_tree.write_params(params)
    # a terminal's Ctrl-C goes to the whole group: to DVC and to the stage
    with subprocess.Popen(
        ["dvc", "repro", "train_base"], cwd=copied_tree.folder, env=copied_tree.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as repro:  # fmt: skip
        lines = iter(repro.stdout)
        next(line for line in lines if "steps/s" in line)
        os.killpg(repro.pid, signal.SIGINT)
        rest = "".join(lines)
    assert repro.returncode != 0
    assert "train_base: stopped by Ctrl-C." in rest
    assert "Traceback" not in rest
    assert not (copied_tree.folder / "models/train_base").exists()
    assert not copied_tree.leftovers()


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "register"])  # it fails in MLflow's words
def test_stage_on_a_full_disk_says_so_and_leaves_nothing(stage: str, copied_tree: Tree) -> None:
    # a limit of 150 bytes a file stands in for the full disk: the kernel refuses the write
    outs = remove_outs(copied_tree, stage)
    result = copied_tree.run("python", "-c", LIMIT_FILE_SIZE, stage)
    assert result.returncode == 1, result.stderr
    assert f"{stage}: could not write" in result.stderr
    assert "the file-size limit was met" in result.stderr
    assert "Traceback" not in result.stderr
    assert not copied_tree.leftovers()
    assert not [out for out in outs if (copied_tree.folder / out).exists()]


def test_stage_on_a_disk_that_is_really_full_says_so(copied_tree: Tree) -> None:
    remove_outs(copied_tree, "split")
    fill_and_run = "head -c 20k /dev/zero > split/filler; python -m tasks.split; ls -A split"
    script = f"mount -t tmpfs -o size=8k tmpfs split && ({fill_and_run})"
    probe = subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system lets nobody mount a small file system of its own")
    (copied_tree.folder / "split").mkdir(exist_ok=True)
    result = copied_tree.run("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    assert "split: could not write split/split.parquet: the disk is full." in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.split() == ["filler"]


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("split", {"group_bye": "template"}, "split.group_bye: unknown key; did you mean 'group_by'?"),
        ("embed", {"pictures": {}, "questions": {}}, "embed"),
        ("vlms", [LATE], "none of the 1 VLMs is in pool 'base'"),
        (
            "train_base",
            {"question_encoders": ["pixels"], "picture_encoders": ["surface"], "profile_encoder": "pixels"},
            "encoder 'pixels' encodes pictures, but stands where one for questions is expected",
        ),
        ("cascade_eval", {"taus": [0.5, 0.5]}, "taus names a threshold twice"),
    ],
)
def test_user_mistake_stops_repro_at_its_stage_with_its_message(
    copied_tree: Tree, section: str, value: Any, words: str
) -> None:
    params = copied_tree.params()
    params[section] = value
    copied_tree.write_params(params)
    result = copied_tree.run("dvc", "repro")
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr
