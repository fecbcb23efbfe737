"""What `make status` looks like: the parts that `flows/overview.py` found, as lines for a terminal."""

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 120  # where the output is no terminal
_MOST = 6  # lines of one part
_COLOURS = {"up": "green", "Completed": "green", "Running": "cyan", "down": "red", "silent": "red", "Failed": "red"}
_COLOURS |= {"Crashed": "red", "Cancelled": "yellow", "Late": "yellow", "Pending": "yellow"}


def show(found: dict[str, Any]) -> None:
    """Print one screen.

    Args:
        found: what `flows.overview.gather` gives.
    """
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    screen = Table.grid(padding=(0, 2))
    screen.add_column(style="bold", no_wrap=True)
    screen.add_column(overflow="fold")
    parts: dict[str, tuple[str, Callable[[Any], Iterator[Text]]]] = {
        "Services": ("services", _services),
        "Workers": ("workers", _workers),
        "Runs": ("runs", _runs),
        "Stale": ("stale", _stale),
        "New VLMs": ("new_vlms", _new_vlms),
        "Champion": ("champion", _champion),
        "Spent": ("spent", _spent),
        "Links": ("links", _links),
    }
    for title, (name, lines_of) in parts.items():
        why = found["unknown"].get(name) or (name == "new_vlms" and found["unknown"].get("champion"))
        lines = [Text(f"not known: {why}", style="yellow")] if why else list(lines_of(found[name]))
        for number, line in enumerate(lines):
            screen.add_row("" if number else title, line)
    console.print(screen)


def _services(found: list[dict[str, Any]]) -> Iterator[Text]:
    for service in found:
        line = Text(f"{service['name']:<15}").append(f"{service['state']:<7}", style=_COLOURS[service["state"]])
        if service["pid"] is not None:
            line.append(f"since {_local(service['since'])}  pid {service['pid']:<8}{service['url'] or ''}")
        yield line


def _workers(found: dict[str, list[str]]) -> Iterator[Text]:
    yield Text("; ".join(f"{pool}: {len(names)} online" for pool, names in found.items()))


def _runs(found: list[dict[str, Any]]) -> Iterator[Text]:
    if not found:
        yield Text("none yet; `prefect deployment run train-arms/incremental --watch` starts one")
    for run in found:
        line = Text(f"{run['flow'] + '/' + run['name']:<28} ").append(
            f"{run['state']:<12}", style=_COLOURS.get(run["state"], "")
        )
        line.append(f"{_local(run['since'])}  {_duration(run['seconds'])}")
        if run["message"] and run["state"] != "Completed":
            line.append(f"  {run['message'].strip().splitlines()[0][:60]}", style="dim")
        yield line


def _stale(found: dict[str, Any]) -> Iterator[Text]:
    changed, may_run = found["changed"], found["may_run"]
    if not changed:
        yield Text("nothing: dvc repro would run no stage", style="green")
        return
    for name, reasons in list(changed.items())[:_MOST]:
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        yield Text(f"{name:<20}{reasons[0]}{more}")
    if len(changed) > _MOST:
        yield Text(f"and {len(changed) - _MOST} more: {', '.join(list(changed)[_MOST:])}")
    if after := [name for name in may_run if name not in changed]:
        yield Text(f"after them perhaps: {', '.join(after)}", style="dim")


def _new_vlms(found: list[str]) -> Iterator[Text]:
    if not found:
        yield Text("none that the champion cannot choose")
        return
    yield Text(", ".join(found))
    yield Text("train-arms/incremental learns them", style="dim")


def _champion(found: dict[str, Any] | None) -> Iterator[Text]:
    if found is None:
        yield Text("none yet; train-arms or `python -m tasks.register promote` makes one")
        return
    tau = f", tau {found['tau']:g}" if found.get("tau") is not None else ""
    strategy = f"{found['model']} version {found['version']}: {found['strategy']}{tau}, {len(found['vlms'])} VLMs"
    yield Text(strategy)
    yield Text(f"since {_local(found['since'])} by {found['who'] or '?'}: {found['why'] or 'no reason given'}")


def _spent(found: dict[str, Any]) -> Iterator[Text]:
    num_answers = sum(vlm["num_answers"] for vlm in found["vlms"])
    failed = f", {_usd(found['failed_usd'])} of it for attempts without an answer" if found.get("failed_usd") else ""
    yield Text(f"{_usd(found['total_usd'])} for {num_answers:,} kept answers of {len(found['vlms'])} VLMs{failed}")
    dear = sorted((vlm for vlm in found["vlms"] if vlm["spent_usd"]), key=lambda vlm: -vlm["spent_usd"])
    if dear:
        yield Text(", ".join(f"{vlm['model']} {_usd(vlm['spent_usd'])}" for vlm in dear[:_MOST]), style="dim")


def _links(found: dict[str, str]) -> Iterator[Text]:
    if not found:
        yield Text("no report yet and no server; `make run`, `make up`")
    for name, place in found.items():
        yield Text(f"{name:<9}{place}")


def _local(time: str | None) -> str:
    """A time in ISO format, as the clock on the wall shows it."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M") if time else "?"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _usd(amount: float | None) -> str:
    return "an unknown amount" if amount is None else f"${amount:,.4f}"
