"""A changed list of VLMs starts what it asks for, and nothing else.

    python -m flows.retrain --since HEAD~1 --dry-run               what would be done, asked and spent
    python -m flows.retrain --since HEAD~1 --budget-usd 5 --watch  do it, if asking should cost at most $5

Compares `params.yaml: vlms` with what the champion chooses from, and with the list at a commit. Added VLMs are learned
by `train-arms/incremental`: through Prefect's server where one answers, else in this process. Removed ones are retired
from what the champion chooses from, without training. Of a changed block it says what follows: a price or a display
name trains nothing, a profile trains what learned it, an endpoint asks it again. Exit codes: 0 done or nothing to do, 1
refused or failed, 2 a mistake in what was asked. Guide: docs/retraining.md.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from uuid import UUID

import httpx
from dvc.exceptions import DvcException

from flows.command import CommandError, run_json
from flows.retrain_plan import Plan, as_markdown, as_text, read_plan
from flows.servers import api_answers
from flows.trees import CHECKOUT, VERDICT, UserError, identity, read_json

_POLL_S = 3.0
log = logging.getLogger(__name__)


def work(options: argparse.Namespace, folder: Path) -> int:
    """Make the plan, say it, and do it unless it is refused; the exit code."""
    may_ask_others = options.ask_others
    plan = read_plan(folder, since=options.since, budget_usd=options.budget_usd, may_ask_others=may_ask_others)
    if options.markdown is not None:
        options.markdown.unlink(missing_ok=True)
    print(as_text(plan), flush=True)
    if plan.refusals or options.dry_run:
        _add(options.markdown, as_markdown(plan))
        return 1 if plan.refusals else 0
    if plan.retire and options.no_promote:
        print("not retired: --no-promote changes no champion")
    elif plan.retire:
        retire(plan, folder)
        _add(options.markdown, f"The champion no longer chooses {', '.join(plan.retire)}.\n")
    if plan.mode is None:
        return 0
    return start(plan, options)


def retire(plan: Plan, folder: Path) -> None:
    """Take what params no longer name out of what the champion chooses from.

    Raises:
        flows.command.CommandError: the registry refuses.
    """
    why = f"{', '.join(plan.retire)} left params.yaml since {plan.since}"
    command = ["python", "-m", "tasks.register", "retire", *plan.retire, "--why", why, "--json"]
    done = run_json(command, folder=folder, log=log)
    print(f"retired: {', '.join(plan.retire)}; {json.dumps(done)}", flush=True)


def start(plan: Plan, options: argparse.Namespace) -> int:
    """Start train-arms, on Prefect's server or in this process; the exit code."""
    # Prefect takes seconds to import and reads its settings where it is imported: a plan alone needs it not
    os.chdir(CHECKOUT)
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if options.here or not url or not api_answers(url):
        from flows import train_arms

        words = [str(plan.mode), *(["--propose"] if options.no_promote else []), *(["--sync"] if options.sync else [])]
        code = train_arms.main(words)
        _add(options.markdown, _outcome(code))
        return code
    _add(options.markdown, as_markdown(plan))
    return _start_on_server(plan, options)


def _add(path: Path | None, text: str) -> None:
    """To what `--markdown` asks for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(text)


def _outcome(code: int) -> str:
    """What came of the run, as Markdown."""
    verdict = read_json(CHECKOUT / VERDICT)
    if code != 0 or not verdict:
        return "**The run failed**; its log says where.\n"
    return f"### Challenger against champion: {verdict['decision']}\n\n```\n{str(verdict['text']).strip()}\n```\n"


def _start_on_server(plan: Plan, options: argparse.Namespace) -> int:
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    name = f"train-arms/{plan.mode}"
    parameters = {
        "mode": plan.mode,
        "promote": not options.no_promote,
        "sync": options.sync,
        "planned_for": identity(CHECKOUT).params,  # the worker's checkout may be another one, or edited meanwhile
        "budget_usd": options.budget_usd,
    }
    try:
        sent = cast(FlowRun, run_deployment(name, parameters=parameters, timeout=0, as_subflow=False))
    except ObjectNotFound:
        raise UserError(f"Prefect's server knows no deployment {name}: `make up` registers it.") from None
    print(f"started {name} as run '{sent.name}' ({sent.id})", flush=True)
    if not options.watch:
        print("`--watch` waits for its end; `make status` shows it")
        return 0
    return _watch(sent.id)


def _watch(run_id: UUID) -> int:
    """Wait for a run's end, whatever becomes of the server meanwhile; the exit code."""
    from prefect.client.orchestration import get_client

    said = ""
    with get_client(sync_client=True) as client:
        while True:
            try:
                state = client.read_flow_run(run_id).state
            except httpx.TransportError as error:
                log.warning("Prefect's server is away (%s); waiting until it is back", type(error).__name__)
                time.sleep(_POLL_S)
                continue
            if state is not None and state.name != said:
                said = str(state.name)
                print(f"{said}{f': {state.message}' if state.message else ''}", flush=True)
            if state is not None and state.is_final():
                return 0 if state.is_completed() else 1
            time.sleep(_POLL_S)


def _usd(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected dollars, 0 or more, got {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m flows.retrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--since", required=True, metavar="REF", help="a commit: params.yaml as it was then is compared with")
    add("--dry-run", action="store_true", help="print the plan with expected calls and dollars; start nothing")
    add("--budget-usd", type=_usd, metavar="X", help="refuse where asking should cost more; default: no limit")
    add("--ask-others", action="store_true", help="also ask VLMs that did not change what they lack")
    add("--no-promote", action="store_true", help="compare challenger and champion, but change no champion")
    add("--sync", action="store_true", help="fetch from the DVC remote before, push after")
    add("--here", action="store_true", help="run in this process even where Prefect's server answers")
    add("--watch", action="store_true", help="wait for the end of a run that was started on the server")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the plan there as Markdown, or what came of a run in this process",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a changed list of VLMs asks for; the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="retrain: %(message)s", stream=sys.stderr)
    try:
        return work(options, CHECKOUT)
    except UserError as error:
        print(f"retrain: {error}", file=sys.stderr)
        return 2
    except CommandError as error:
        print(f"retrain: {error}", file=sys.stderr)
        return 2 if error.code == 2 else 1
    except DvcException as error:
        print(f"retrain: DVC cannot say what is stale: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
