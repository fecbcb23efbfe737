"""What a run leaves on Prefect's pages: what each stage did, metrics before and after, links, a gate that failed."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from arms_model.uris import shown_uri
from flows.stage_runs import StageRun

FAILED_GATE = "failed-gate"  # key of its page
_GATES = Path(".arms/gates")
_NUM_ROWS = 50  # of a failed gate, on the page; all are in the file


def read_metrics(folder: Path, paths: Sequence[str]) -> dict[str, float]:
    """All numbers in the metrics files that are there, by file and key, e.g. `metrics/train_base.json: seconds`."""
    numbers: dict[str, float] = {}
    for path in paths:
        if (folder / path).exists():
            numbers |= {f"{path}: {key}": value for key, value in _numbers(json.loads((folder / path).read_text()))}
    return numbers


def _numbers(value: Any, key: str = "") -> Sequence[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [
            found for name, item in value.items() for found in _numbers(item, f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [(key, float(value))]
    return []


def show_stages(runs: Sequence[StageRun], reasons: Mapping[str, Sequence[str]]) -> None:
    """A table: each stage, what came of it, how long it took, and what had changed."""
    rows = [
        {
            "stage": run.stage,
            "outcome": run.outcome,
            "seconds": round(run.seconds, 1),
            "what had changed": "; ".join(list(reasons.get(run.stage, ()))[:5]),
        }
        for run in runs
    ]
    create_table_artifact(key="stages", table=rows, description="What each stage of the run did")


def show_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """A table of the metrics that are new or have another value."""
    rows = [
        {
            "metric": name,
            "before": before.get(name, ""),
            "after": value,
            "difference": round(value - before[name], 6) if name in before else "",
        }
        for name, value in after.items()
        if before.get(name) != value
    ]
    create_table_artifact(key="metrics", table=rows, description="Metrics before and after the run, where they differ")


def show_links(folder: Path, verdict: Mapping[str, Any] | None) -> None:
    """Links to the report and to MLflow's pages."""
    report = folder / "report/report.html"
    if report.exists():
        create_link_artifact(key="report", link=report.as_uri(), link_text=str(report), description="The report")
    server = shown_uri(os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    registered = folder / "register/registered.json"
    if server.startswith(("http://", "https://")) and registered.exists():
        model = json.loads(registered.read_text())["model"]
        lines = [f"- [runs]({server}/#/experiments)", f"- [{model}]({server}/#/models/{model})"]
        numbers = {role: number for role in ("challenger", "champion") if (number := (verdict or {}).get(role))}
        lines += [f"- [{role}: version {n}]({server}/#/models/{model}/versions/{n})" for role, n in numbers.items()]
        create_markdown_artifact(key="mlflow", markdown="\n".join(lines), description="MLflow's pages")


def show_verdict(verdict: Mapping[str, Any]) -> None:
    """What the comparison of challenger and champion said."""
    text = f"**{verdict['decision']}**\n\n```\n{verdict['text']}\n```"
    create_markdown_artifact(key="promotion", markdown=text, description="Challenger against champion")


def show_failed_gate(stage: str, message: str, folder: Path) -> None:
    """What an invariant said, and its failing rows."""
    parts = [f"## Stage {stage}: a gate failed\n", f"```\n{message}\n```"]
    for path in sorted((folder / _GATES / stage).glob("*.parquet")):
        table = pyarrow.parquet.read_table(path)
        parts.append(f"### {path.stem}: {table.num_rows} rows, in `{path}`\n")
        parts.append(_markdown_table(table.slice(0, _NUM_ROWS).to_pylist()))
    show_gate_page("\n\n".join(parts))


def show_gate_page(markdown: str) -> None:
    """The page of a failed gate, made here or by the run on the other pool."""
    create_markdown_artifact(key=FAILED_GATE, markdown=markdown, description="The gate that failed")


def tell_gate_failed(message: str, *, flow_run_id: str) -> None:
    """An event that automations can wait for; told by the run of train-arms, whose schedule they may pause."""
    stage = message.removeprefix("stage ").partition(":")[0]
    emit_event(
        event="arms.gate.failed",
        resource={"prefect.resource.id": f"arms.stage.{stage}", "prefect.resource.name": stage},
        payload={"stage": stage, "message": message, "flow_run_id": flow_run_id},
    )


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [[str(row[column]).replace("|", "\\|").replace("\n", " ")[:80] for column in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
