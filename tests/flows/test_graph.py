"""DVC's graph as the flows read it."""

from pathlib import Path

import pytest
from dvc.exceptions import NotDvcRepoError

from flows.graph import Graph, read_graph
from tests.flows.mini import dvc, write_mini_tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_mini_tree(tmp_path_factory.mktemp("mini") / "tree")
    dvc(folder, "repro", "--quiet")
    return folder


@pytest.fixture(scope="module")
def graph(finished: Path) -> Graph:
    return read_graph(finished)


def test_order_is_one_of_the_graph(graph: Graph) -> None:
    position = {name: number for number, name in enumerate(graph.order)}
    assert set(graph.order) == {"first", "train", "label", "last", "apart"}
    assert all(position[need] < position[stage.name] for stage in graph.stages.values() for need in stage.needs)


def test_stages_for_gpus_come_after_all_others_that_can_run_before(graph: Graph) -> None:
    assert graph.order.index("apart") < graph.order.index("train")


def test_stage_says_what_dvc_yaml_says(graph: Graph) -> None:
    train, label = graph.stages["train"], graph.stages["label"]
    assert (train.is_gpu, train.timeout_h, train.retries, train.reads_vlms) == (True, 0.5, 2, False)
    assert (label.is_gpu, label.retries, label.reads_vlms) == (False, 0, True)
    assert train.needs == {"first", "label"}


def test_upstream_and_downstream_go_all_the_way(graph: Graph) -> None:
    assert graph.upstream(["train"]) == {"first", "label", "train"}
    assert graph.downstream(["label"]) == {"label", "train", "last"}
    assert graph.of_vlms == {"label", "train", "last"}


def test_nothing_may_run_where_all_is_done(graph: Graph) -> None:
    assert graph.changes == {}
    assert graph.may_run() == frozenset()
    assert graph.may_run(force=["train"]) == {"train", "last"}


def test_changed_param_makes_its_stage_and_what_needs_it_stale(tmp_path: Path) -> None:
    folder = write_mini_tree(tmp_path / "tree")
    dvc(folder, "repro", "--quiet")
    (folder / "params.yaml").write_text("train: 2\nvlms: [a, b]\n")
    graph = read_graph(folder)
    assert graph.may_run() == {"train", "last"}
    assert graph.changes == {"train": ["params.yaml: train modified"]}
    assert graph.edited == {"train": ["params.yaml: train modified"]}


def test_new_vlm_is_no_edit_of_anything_else(tmp_path: Path) -> None:
    folder = write_mini_tree(tmp_path / "tree")
    dvc(folder, "repro", "--quiet")
    (folder / "params.yaml").write_text("train: 1\nvlms: [a, b, c]\n")
    graph = read_graph(folder)
    assert graph.may_run() == {"label", "train", "last"}
    assert graph.edited == {}


def test_missing_output_is_stale_and_no_edit(tmp_path: Path) -> None:
    folder = write_mini_tree(tmp_path / "tree")
    dvc(folder, "repro", "--quiet")
    (folder / "first.txt").unlink()
    graph = read_graph(folder)
    assert {"first", "train", "label", "last"} <= graph.may_run()
    assert graph.edited == {}


def test_stage_that_never_ran_is_no_edit(tmp_path: Path) -> None:
    graph = read_graph(write_mini_tree(tmp_path / "tree"))
    assert graph.may_run() == set(graph.stages)
    assert graph.edited == {}


def test_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotDvcRepoError):
        read_graph(tmp_path)
