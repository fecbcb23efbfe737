"""The key of a run: the same before, during and after the stage, DVC's own hashes, and nothing else."""

import os
from typing import Any

import pytest
from ruamel.yaml import YAML

from arms_model.errors import DataError
from tasks.common.stage_inputs import StageFiles
from tests.conftest import Tree

STAGES = ("train_base", "train_incremental", "train_independent", "cascade_eval")


def _locked(tree: Tree, stage: str) -> Any:
    return YAML(typ="safe").load((tree.folder / "dvc.lock").read_text())["stages"][stage]


@pytest.mark.parametrize("stage", STAGES)
def test_hashes_from_disk_are_those_of_dvc(finished_tree: Tree, stage: str) -> None:
    locked = _locked(finished_tree, stage)
    inputs = StageFiles(finished_tree.folder).while_running(stage)
    assert inputs.deps == {dep["path"]: dep["md5"] for dep in locked["deps"]}
    assert inputs.params == locked["params"]["params.yaml"]


@pytest.mark.parametrize("stage", STAGES)
def test_key_is_the_same_before_and_after_the_stage_ran(finished_tree: Tree, stage: str) -> None:
    files = StageFiles(finished_tree.folder)
    assert files.while_running(stage).key == files.of_outputs(stage).key


def test_hashes_without_lock_and_cache_are_the_same(copied_tree: Tree) -> None:
    expected = StageFiles(copied_tree.folder).while_running("cascade_eval")
    (copied_tree.folder / "dvc.lock").unlink()
    assert StageFiles(copied_tree.folder).while_running("cascade_eval") == expected


def test_pictures_are_not_read_again_where_dvc_knows_them(copied_tree: Tree) -> None:
    expected = StageFiles(copied_tree.folder).while_running("train_base").key
    picture = next((copied_tree.folder / "queries/images").rglob("*.png"))
    content, before = picture.read_bytes(), picture.stat()
    picture.unlink()  # a link into DVC's cache, maybe
    picture.write_bytes(bytes(len(content)))
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had touched it
    assert StageFiles(copied_tree.folder).while_running("train_base").key == expected


def test_data_newer_than_the_lock_is_read(copied_tree: Tree) -> None:
    expected = StageFiles(copied_tree.folder).while_running("train_base").key
    table = copied_tree.folder / "split/split.parquet"
    content = bytearray(table.read_bytes())
    table.unlink()
    content[20] ^= 1
    table.write_bytes(content)
    os.utime(table, (2e9, 2e9))
    assert StageFiles(copied_tree.folder).while_running("train_base").key != expected


def test_edits_after_the_stage_ran_change_nothing_of_what_its_outputs_were_made_from(copied_tree: Tree) -> None:
    expected = StageFiles(copied_tree.folder).of_outputs("train_base").key
    params = copied_tree.params()
    params["train_base"]["training"]["epochs"] = 7
    copied_tree.write_params(params)
    (copied_tree.folder / "tasks/train_base.py").write_text("# edited\n")
    assert StageFiles(copied_tree.folder).of_outputs("train_base").key == expected
    assert StageFiles(copied_tree.folder).while_running("train_base").key != expected


def test_outputs_that_the_lock_does_not_know_are_of_what_stands_there_now(copied_tree: Tree) -> None:
    params = copied_tree.params()
    params["train_base"]["training"]["epochs"] = 2
    copied_tree.write_params(params)
    assert copied_tree.stage("train_base").returncode == 0  # without DVC
    files = StageFiles(copied_tree.folder)
    assert files.of_outputs("train_base").params["train_base"]["training"]["epochs"] == 2
    assert files.of_outputs("train_base").key == files.while_running("train_base").key


def test_missing_output_is_named_with_what_to_do(copied_tree: Tree) -> None:
    (copied_tree.folder / "metrics/train_base.json").unlink()
    with pytest.raises(DataError, match=r"metrics/train_base.json is missing; run stage train_base \(`dvc repro"):
        StageFiles(copied_tree.folder).of_outputs("train_base")


def test_data_is_told_from_code(finished_tree: Tree) -> None:
    assert set(StageFiles(finished_tree.folder).of_outputs("train_base").data) == {
        "queries", "split/split.parquet", "embed", "label/base.parquet", "profiles/base.parquet",
    }  # fmt: skip
