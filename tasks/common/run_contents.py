"""What belongs into the record of a run, read from what the stages left in files. It knows nothing of MLflow.

Never in it: questions, answers, pictures, endpoints, keys, paths of this machine. So params pass by a list of what may
be shown where a section holds more than numbers (`vlms`), and of the outputs only tables and figures of results are
taken, by name: no report page, no parquet table, no weights.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.common.files import read_json
from tasks.common.stage_inputs import StageInputs
from tasks.common.tables import strategy_row

TRAINING = ("train_base", "train_incremental", "train_independent")
EVALUATION = "cascade_eval"
RECORDED = (*TRAINING, EVALUATION)
CURVES = ("train_loss", "validation_loss", "learning_rate")
MAX_METRICS = 30
MAX_TEXT = 5000  # MLflow's limits are 6000 for a param and 8000 for a tag
_SHOWN_OF_VLM = ("pool", "usd_per_mtok_in", "usd_per_mtok_out")
_FIGURES = (".svg", ".png")
_PATH = re.compile(r"/|~|file:|[A-Za-z]:[/\\]")  # absolute, or below somebody's home


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """What one run holds.

    Attributes:
        params: as text.
        tags: as text.
        curves: metric -> epoch -> value.
        metrics: final figures.
        artifacts: name -> content.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


def stage_content(stage: str, inputs: StageInputs) -> RunContent:
    """The record of a train or evaluation stage that ran.

    Raises:
        DataError: one of its outputs is missing.
    """
    params, tags = shown_params(stage, inputs.params), data_tags(inputs)
    if stage == EVALUATION:
        folder = Path(EVALUATION)
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".csv", ".json"))
        artifacts = {f"{EVALUATION}/{name}": (folder / name).read_bytes() for name in names}
        selection = read_json(folder / "selection.json")
        tags["arms.challenger"] = str(selection["challenger"])
        metrics = evaluation_metrics(read_json(folder / "metrics.json"), selection)
        return RunContent(params=params, tags=tags, metrics=metrics, artifacts=artifacts)
    metrics_file, curves_file = Path(f"metrics/{stage}.json"), Path(f"curves/{stage}.csv")
    figures = read_json(metrics_file)
    if reason := figures.get("nothing_to_learn"):
        tags["arms.nothing_to_learn"] = str(reason)
    return RunContent(
        params=params,
        tags=tags,
        curves=read_curves(curves_file),
        metrics=_limited(dict(_numbers(figures))),
        artifacts={str(path): path.read_bytes() for path in (metrics_file, curves_file)},
    )


def pipeline_content() -> RunContent:
    """The record of the pipeline as a whole: the gates' results, the report's figures, what would be served."""
    gates = [read_json(path) for path in sorted(Path("gates").glob("*.json"))]
    selection = read_json(Path(EVALUATION) / "selection.json")
    artifacts = {f"gates/{gate['stage']}.json": _as_json(gate) for gate in gates}
    artifacts["gates/gates.md"] = gates_table(gates).encode()
    figures = Path("report/figures")
    paths = sorted(path for path in figures.glob("*") if path.suffix in _FIGURES) if figures.is_dir() else []
    artifacts |= {f"figures/{path.name}": path.read_bytes() for path in paths}
    metrics = {
        "gates/num_invariants": float(sum(len(gate["expectations"]) for gate in gates)),
        "gates/num_warnings": float(sum(gate["num_warnings"] for gate in gates)),
        "gates/num_declared": float(sum(gate["num_declared"] for gate in gates)),
    }
    metrics |= evaluation_metrics(read_json(Path(EVALUATION) / "metrics.json"), selection)
    tags = {"arms.challenger": str(selection["challenger"])}
    return RunContent(tags=tags, metrics=metrics, artifacts=artifacts)


def shown_params(stage: str, params: dict[str, Any]) -> dict[str, str]:
    """The params of a stage, flat; the stage's own without its name, so that runs of train stages compare.

    Of `vlms` only names, pools and prices: an endpoint may have an address or a header that is nobody's business.
    """
    shown: dict[str, str] = {}
    for section, value in params.items():
        if section == "vlms":
            shown |= _shown_vlms(value)
        elif section == stage:
            shown |= dict(_flat("", value))
        else:
            shown |= dict(_flat(section, value))
    return {name: value[:MAX_TEXT] for name, value in shown.items()}


def data_tags(inputs: StageInputs) -> dict[str, str]:
    """The hashes of the data that a stage reads, as DVC counts them."""
    return {f"arms.data.{path}": md5 for path, md5 in inputs.data.items() if not Path(path).is_absolute()}


def curve_points(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of one epoch of one member; a chart for each loss, the members beside each other in it.

    Args:
        record: `member`, `epoch` and the columns of `curves/<stage>.csv`.
    """
    points = {f"{name}/member{int(record['member'])}": float(record[name]) for name in CURVES}
    return {name: value for name, value in points.items() if math.isfinite(value)}


def read_curves(path: Path) -> dict[str, dict[int, float]]:
    """The curves of a train stage: metric -> epoch -> value."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            for name, value in curve_points(row).items():
                curves.setdefault(name, {})[int(float(row["epoch"]))] = value
    return curves


def evaluation_metrics(evaluated: dict[str, Any], selection: dict[str, Any]) -> dict[str, float]:
    """The figures that tell at a glance: routers, the best single VLM and the oracle; cascades at their picked tau.

    Args:
        evaluated: `cascade_eval/metrics.json`: split -> pool -> method -> figures.
        selection: `cascade_eval/selection.json`.

    Returns:
        `held_out/<strategy>`, `<split>/<pool>/<method>` (macro EM) and `.../gap_recovered` on the extended pool.
    """
    shown = {"best single": "best single", "oracle": "oracle"}
    metrics: dict[str, float] = {}
    for entry in selection["strategies"]:
        name = _plain(strategy_row(entry["strategy"], None))
        shown[strategy_row(entry["strategy"], entry["tau"])] = name
        if entry["em"] is not None:
            metrics[f"held_out/{name}"] = float(entry["em"])
    for split, pools in evaluated.items():
        for pool, methods in pools.items():
            for method, name in shown.items():
                figures = methods.get(method, {})
                if "em" in figures:
                    metrics[f"{split}/{pool}/{name}"] = float(figures["em"])
                if pool == "extended" and "gap_recovered" in figures and method.startswith("ARMS"):
                    metrics[f"{split}/gap_recovered/{name}"] = float(figures["gap_recovered"])
    return _limited(metrics)


def gates_table(gates: list[dict[str, Any]]) -> str:
    """The gates' results as Markdown."""
    lines = [
        "# Gates",
        "",
        "| stage | invariant | what holds | severity | checked | failed | declared | |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for gate in gates:
        for held in gate["expectations"]:
            cells = [gate["stage"], held["name"], held["sentence"], held["severity"], held["checked"], held["failed"]]
            cells += [held["declared"], "passed" if held["success"] else "failed"]
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _shown_vlms(vlms: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for pool in ("base", "new"):
        yield f"vlms.{pool}", ", ".join(vlm["name"] for vlm in vlms if vlm["pool"] == pool)
    shown = {vlm["name"]: {name: vlm[name] for name in _SHOWN_OF_VLM if name in vlm} for vlm in vlms}
    yield "vlms.shown", json.dumps(shown)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested settings with dotted names; a list in one piece."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        value = _without_folders(value)
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _without_folders(value: Any) -> Any:
    """Of paths on this machine their last part, e.g. of the folder of an encoder's weights."""
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and _PATH.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested figures, by names with dots; of a list, its mean."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        yield f"{name}_mean", sum(value) / len(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _limited(metrics: dict[str, float]) -> dict[str, float]:
    return dict(list(metrics.items())[:MAX_METRICS])


def _plain(name: str) -> str:
    """A name that MLflow takes for a metric."""
    return re.sub(r"[^\w.\- ]", "", name.replace(" + ", " and "))


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
