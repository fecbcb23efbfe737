"""One screen of where this checkout stands: `make status`.

    python -m flows.overview [--json]

What runs, which stages are stale, which VLMs are new, who is champion, what was spent, where to look. Each part is
asked for by itself and at the same time, so what is down or slow leaves a line that says so and hides nothing else.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import addresses, processes, servers
from flows.command import CommandError, run_json
from flows.screen import show
from flows.servers import HOST, MLFLOW, PREFECT

log = logging.getLogger(__name__)
_PYTHON = ("python", "-m")
_LIMIT_S = 45.0  # on a quiet machine all is there after five
_EXPECTED = (PREFECT, MLFLOW, servers.CPU_WORKER, f"{servers.GPU_WORKER}-0")  # where `make up` never ran
_UNDER_WAY = ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]
_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
_NUM_ENDED = 5
REPORT = Path("report/report.html")


class UnknownError(Exception):
    """A part of the screen that cannot be told; the text says why."""


def gather(root: Path) -> dict[str, Any]:
    """All that the screen shows.

    Args:
        root: the checkout.

    Returns:
        One entry a part, None where it is not known; `unknown` says why, by part.
    """
    api_url = _api_url(root)
    parts: dict[str, Callable[[], Any]] = {
        "services": lambda: services(root),
        "workers": lambda: workers(api_url),
        "runs": lambda: flow_runs(api_url),
        "stale": lambda: stale(root),
        "champion": lambda: run_json([*_PYTHON, "tasks.register", "champion", "--json"], folder=root, log=log),
        "spent": lambda: run_json([*_PYTHON, "tasks.collect", "--spent", "--json"], folder=root, log=log),
    }
    found, unknown = _at_once(parts, api_url=api_url)
    try:
        found["new_vlms"] = None if "champion" in unknown else new_vlms(root, found["champion"])
    except UnknownError as error:
        found["new_vlms"], unknown["new_vlms"] = None, str(error)
    return {**found, "links": links(root), "unknown": unknown}


def _at_once(parts: dict[str, Callable[[], Any]], *, api_url: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What each part gives, and why others give nothing."""
    found: dict[str, Any] = {}
    unknown = dict.fromkeys(parts, f"no answer within {_LIMIT_S:.0f} s")

    def ask(name: str, part: Callable[[], Any]) -> None:
        try:
            found[name] = part()
            del unknown[name]
        except (UnknownError, CommandError, httpx.HTTPError) as error:
            unknown[name] = str(error) or type(error).__name__
        except json.JSONDecodeError:
            unknown[name] = f"what answers at {api_url} is no server of Prefect's; see PREFECT_API_URL"

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in parts.items()]
    until = time.monotonic() + _LIMIT_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {name: found.get(name) for name in parts}, dict(unknown)


def _api_url(root: Path) -> str | None:
    """Of the server of `make up`, else of the one that the user names."""
    service = processes.recorded(root).get(PREFECT)
    if service is not None and processes.is_running(service, root=root):
        return f"http://{HOST}:{service.port}/api"
    return os.environ.get("PREFECT_API_URL")


def services(root: Path) -> list[dict[str, Any]]:
    """The processes of `make up`: name, state (`up`, `silent`, `down`), pid, since, url.

    Args:
        root: the checkout.
    """
    known = processes.recorded(root)
    expected = addresses.read(root).get("services", _EXPECTED)
    names = [*expected, *sorted(set(known) - set(expected))]
    return [_state(name, known.get(name), root) for name in names]


def _state(name: str, service: processes.Service | None, root: Path) -> dict[str, Any]:
    if service is None or not processes.is_running(service, root=root):
        return {"name": name, "state": "down", "pid": None, "since": None, "url": None}
    is_well = service.port is None or servers.answers(name, service.port)
    return {
        "name": name,
        "state": "up" if is_well else "silent",
        "pid": service.pid,
        "since": datetime.fromtimestamp(service.started_at, UTC).isoformat(timespec="seconds"),
        "url": f"http://{HOST}:{service.port}" if service.port is not None else None,
    }


def workers(api_url: str | None) -> dict[str, list[str]]:
    """The workers that report, by pool.

    Args:
        api_url: of Prefect's server; None where there is none.

    Raises:
        UnknownError: there is no server.
        httpx.HTTPError: it does not answer.
    """
    api_url = _needed(api_url)
    return {pool: sorted(servers.workers_online(api_url, pool)) for pool in (servers.CPU_POOL, servers.GPU_POOL)}


def _needed(api_url: str | None) -> str:
    if api_url is None:
        raise UnknownError("Prefect's server is down; `make up` starts it")
    return api_url


def flow_runs(api_url: str | None) -> list[dict[str, Any]]:
    """The runs under way or waiting, newest first, then the last ones that ended: flow, name, state, since, seconds.

    Args:
        api_url: of Prefect's server; None where there is none.

    Raises:
        UnknownError: there is no server.
        httpx.HTTPError: it does not answer.
    """
    api_url = _needed(api_url)
    now = datetime.now(UTC).isoformat()
    waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"before_": now}}
    found = [
        *_runs(api_url, {"state": {"type": {"any_": _UNDER_WAY}}}, sort="EXPECTED_START_TIME_DESC", limit=10),
        *_runs(api_url, waiting, sort="EXPECTED_START_TIME_DESC", limit=10),
        *_runs(api_url, {"state": {"type": {"any_": _ENDED}}}, sort="END_TIME_DESC", limit=_NUM_ENDED),
    ]
    ids = sorted({run["flow_id"] for run in found})
    named = servers.ask(api_url, "POST", "flows/filter", {"flows": {"id": {"any_": ids}}})
    flows = {flow["id"]: flow["name"] for flow in named}
    return [
        {
            "flow": flows.get(run["flow_id"], "?"),
            "name": run["name"],
            "state": run["state_name"],
            "message": (run["state"] or {}).get("message"),
            "since": run["start_time"] or run["expected_start_time"],
            "seconds": run["estimated_run_time"],
        }
        for run in found
    ]


def _runs(api_url: str, wanted: dict[str, Any], *, sort: str, limit: int) -> list[dict[str, Any]]:
    query = {"flow_runs": wanted, "sort": sort, "limit": limit}
    found: list[dict[str, Any]] = servers.ask(api_url, "POST", "flow_runs/filter", query)
    return found


def stale(root: Path) -> dict[str, Any]:
    """What DVC finds changed: `changed` has the reasons by stage, `may_run` all stages that this can reach, in order.

    Args:
        root: the checkout.

    Raises:
        UnknownError: DVC could not say.
    """
    from dvc.exceptions import DvcException  # takes a second to load; meanwhile the other parts are asked for

    from flows.graph import read_graph

    try:
        graph = read_graph(root)
    except DvcException as error:
        raise UnknownError(f"DVC could not say: {str(error).strip().splitlines()[0]}") from None
    reached = graph.may_run()
    return {"changed": graph.changes, "may_run": [name for name in graph.order if name in reached]}


def new_vlms(root: Path, champion: dict[str, Any] | None) -> list[str]:
    """The VLMs of pool `new` in params.yaml that the champion cannot choose yet.

    Args:
        root: the checkout.
        champion: what serves; None where nothing does.

    Raises:
        UnknownError: params.yaml cannot be read.
    """
    try:
        params = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
        names = [str(vlm["name"]) for vlm in params["vlms"] if vlm["pool"] == "new"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise UnknownError(f"params.yaml has no list of VLMs that can be read ({type(error).__name__})") from None
    return [name for name in names if name not in (champion or {}).get("vlms", [])]


def links(root: Path) -> dict[str, str]:
    """Where to look: the report's file, MLflow's pages, Prefect's pages.

    Args:
        root: the checkout.
    """
    found = {"report": str(root / REPORT)} if (root / REPORT).is_file() else {}
    for service in processes.recorded(root).values():
        if service.port is not None and processes.is_running(service, root=root):
            found[service.name.removesuffix("-server")] = f"http://{HOST}:{service.port}"
    return found


def main() -> int:
    """Show the screen, or print it as JSON; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.overview", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    is_json = parser.parse_args().json
    found = gather(Path.cwd().resolve())
    if is_json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
