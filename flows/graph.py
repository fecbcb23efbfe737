"""DVC's own graph: in which order stages run, which may have something to do, and which want a GPU.

Nothing is written twice: the order comes from `dvc.yaml` through DVC, and so does what is stale. `dvc status` names
only stages whose own inputs changed; what depends on them may have to run as well, or may not, if an output comes out
as it was. So `may_run` is the most that a run can do, asked once; each `dvc repro` then decides for its stage.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.repo import Repo, lock_repo

DEFAULT_TIMEOUT_H = 24.0
_VLMS = "vlms"  # the params section that names the VLMs
_VLMS_CHANGED = f"params.yaml: {_VLMS} modified"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage and what `meta` in dvc.yaml says of it.

    Attributes:
        name: as in dvc.yaml.
        needs: the stages whose outputs it reads.
        reads_vlms: whether it reads the params section `vlms`.
        is_gpu: whether it runs on the pool for GPUs.
        timeout_h: after how many hours it is stopped.
        retries: how often it is tried again after it failed.
    """

    name: str
    needs: frozenset[str]
    reads_vlms: bool = False
    is_gpu: bool = False
    timeout_h: float = DEFAULT_TIMEOUT_H
    retries: int = 0


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The stages of one tree.

    Attributes:
        stages: by name, in the order of dvc.yaml.
        changes: what DVC says of each stage that is stale by itself, in words.
        edited: of the stages that ran before, which of their code and params people have changed since, but for `vlms`.
        metrics: paths of the files with metrics.
    """

    stages: dict[str, Stage]
    changes: dict[str, list[str]]
    edited: dict[str, list[str]]
    metrics: tuple[str, ...]

    @cached_property
    def _edges(self) -> "nx.DiGraph[str]":
        graph: nx.DiGraph[str] = nx.DiGraph()  # from what is needed to what needs it
        graph.add_nodes_from(self.stages)
        graph.add_edges_from((need, stage.name) for stage in self.stages.values() for need in stage.needs)
        return graph

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All stages, each after those it needs; stages for GPUs as late as can be, so that they stand together."""
        position = {name: number for number, name in enumerate(self.stages)}
        key = {name: f"{self.stages[name].is_gpu:d}{number:05d}" for name, number in position.items()}
        return tuple(nx.lexicographical_topological_sort(self._edges, key=key.__getitem__))

    def upstream(self, names: Iterable[str]) -> frozenset[str]:
        """The stages with those names and all that they need, however far."""
        names = set(names)
        return frozenset(names.union(*(nx.ancestors(self._edges, name) for name in names)))

    def downstream(self, names: Iterable[str]) -> frozenset[str]:
        """The stages with those names and all that need them, however far."""
        names = set(names)
        return frozenset(names.union(*(nx.descendants(self._edges, name) for name in names)))

    def may_run(self, *, force: Collection[str] = ()) -> frozenset[str]:
        """The stages that are stale or would be after others have run."""
        return self.downstream({*self.changes, *force})

    @property
    def of_vlms(self) -> frozenset[str]:
        """The stages that a change in the list of VLMs can reach."""
        return self.downstream(name for name, stage in self.stages.items() if stage.reads_vlms)


def read_graph(folder: Path) -> Graph:
    """The graph of the tree in `folder`, and what is stale there.

    Args:
        folder: with dvc.yaml.

    Raises:
        dvc.exceptions.DvcException: no DVC tree, a dvc.yaml with mistakes, or DVC's lock is held by another process.
    """
    with Repo(os.fspath(folder)) as repo, lock_repo(repo):  # without its lock dvc.lock may be read half-written
        graph, root = repo.index.graph, Path(repo.root_dir)
        found = [stage for stage in repo.index.stages if stage in graph and hasattr(stage, "name")]
        needs = {stage.name: frozenset(need.name for need in graph.successors(stage)) for stage in found}
        ran = {stage.name for stage in found if any(out.hash_info for out in stage.outs)}
        made = {Path(out.fs_path) for out in repo.index.outs}
        metrics = sorted(os.path.relpath(out.fs_path, root) for out in repo.index.outs if out.metric)
        status: dict[str, list[Any]] = repo.status()
        changes = {stage.name: list(_changes(status.get(stage.addressing, []))) for stage in found}
    edited = {
        name: [text for path, text in changes[name] if not _is_made(root / path, made) and text != _VLMS_CHANGED]
        for name in ran
    }
    return Graph(
        stages={stage.name: _described(stage, needs[stage.name]) for stage in found},
        changes={name: [text for _, text in texts] for name, texts in changes.items() if texts},
        edited={name: texts for name, texts in edited.items() if texts},
        metrics=tuple(metrics),
    )


def _is_made(path: Path, made: Collection[Path]) -> bool:
    """Whether a stage writes that file, or some of that folder, or a folder around it."""
    return any(path == out or out in path.parents or path in out.parents for out in made)


def _described(stage: Any, needs: frozenset[str]) -> Stage:
    meta = stage.meta if isinstance(stage.meta, dict) else {}
    params = {name for dep in stage.deps for name in getattr(dep, "params", ())}
    return Stage(
        name=stage.name,
        needs=needs,
        reads_vlms=_VLMS in params,
        is_gpu=meta.get("pool") == "gpu",
        timeout_h=float(meta.get("timeout_h", DEFAULT_TIMEOUT_H)),
        retries=int(meta.get("retries", 0)),
    )


def _changes(found: list[Any]) -> Iterator[tuple[str, str]]:
    """`dvc status` of one stage as path in the tree and words, e.g. `params.yaml: embed modified`."""
    for entry in found:
        if not isinstance(entry, dict):
            yield "dvc.yaml", str(entry)
            continue
        for paths in entry.values():
            for path, how in paths.items() if isinstance(paths, dict) else [("dvc.yaml", "command changed")]:
                if isinstance(how, dict):
                    yield from ((path, f"{path}: {name} {change}") for name, change in how.items())
                else:
                    yield path, f"{path} {how}"
