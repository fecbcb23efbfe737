"""What a changed list of VLMs asks for: who is learned, who is retired, what is asked and what it costs.

Nothing is decided twice: what changed and what it makes stale says `tasks.common.vlm_changes`, what the champion
chooses from says the registry, how many questions are open says the answer store, what is stale says DVC. Here it is
put together, held against a budget, and said.
"""

import logging
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from flows.command import CommandError, run_json
from flows.graph import read_graph
from flows.trees import VERDICT, UserError, read_json

Mode = Literal["incremental", "full"]
PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")
_ASKED_AGAIN = ("questions", "answers", "pool")  # effects of a change that may ask
_NEVER_RAN = (" new", " deleted")  # how DVC's words end on inputs that no run has noted, or that are gone
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, before anything is.

    Attributes:
        since: the commit compared with, as it was named.
        champion: what is served: version, strategy, vlms ...; None where nothing is yet.
        learn: VLMs of params that the champion does not choose from, name to pool.
        retire: VLMs that the champion chooses from and params no longer name.
        changes: what `tasks.common.vlm_changes` says, an entry a VLM.
        sections: other sections of params that have changed.
        forecast: what `tasks.collect --dry-run` says; None where no endpoint is asked.
        stale: what DVC says may run, in order; it counts every stage after one that is stale.
        otherwise_stale: of these, what has other reasons than the list of VLMs, e.g. changed code.
        evaluated: the VLMs that the last evaluation knew.
        is_proposed: whether the last comparison was not allowed to promote.
        budget_usd: what may be spent; None for no limit.
        may_ask_others: whether VLMs that did not change may be asked what they lack.
    """

    since: str
    champion: dict[str, Any] | None
    learn: dict[str, str]
    retire: tuple[str, ...]
    changes: tuple[dict[str, Any], ...]
    sections: tuple[str, ...]
    forecast: dict[str, Any] | None
    stale: tuple[str, ...]
    otherwise_stale: tuple[str, ...]
    evaluated: frozenset[str]
    is_proposed: bool
    budget_usd: float | None
    may_ask_others: bool

    @property
    def changed(self) -> tuple[dict[str, Any], ...]:
        """The VLMs that stayed and have other settings."""
        return tuple(change for change in self.changes if change["kind"] == "changed")

    @property
    def mode(self) -> Mode | None:
        """Which mode of train-arms does it; None where there is nothing to run.

        A removed VLM alone trains nothing. VLMs that were learned and not taken by the champion are no reason to run
        again, unless something is left to do: a run that was stopped, or a promotion that was only proposed.
        """
        if any(change["effect"] == "pool" for change in self.changed):
            return "full"
        is_new = bool(set(self.learn) - self.evaluated)
        is_gone = bool(self.retire) or any(change["kind"] == "removed" for change in self.changes)
        is_left = bool(self.learn) and not is_gone and (bool(self.stale) or self.is_proposed)
        return "incremental" if is_new or self.changed or is_left else None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that may run for these changes, in order; if nothing changed, all that is stale."""
        named = {stage for change in self.changes for stage in change["stages"]}
        return tuple(stage for stage in self.stale if not named or stage in named) if self.mode else ()

    @property
    def also_stale(self) -> tuple[str, ...]:
        """Stages that run as well, for other reasons than the list of VLMs."""
        return tuple(stage for stage in self.otherwise_stale if self.mode and stage not in self.stages)

    @property
    def to_ask(self) -> tuple[dict[str, Any], ...]:
        """The forecast of each VLM that would be asked."""
        return to_ask_of(self.forecast) if self.forecast and self.mode else ()

    @property
    def expected_usd(self) -> float:
        """What asking should cost, as far as prices are known."""
        return sum(row["expected_usd"] or 0.0 for row in self.to_ask)

    @property
    def worst_usd(self) -> float:
        """What it could cost at most, as far as prices are known."""
        return sum(row["worst_usd"] or 0.0 for row in self.to_ask)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why this is not done, each with what would let it."""
        return tuple(text for text in (self._asks_others(), refused_by(self.budget_usd, self.to_ask)) if text)

    def _asks_others(self) -> str | None:
        mine = {*self.learn, *(change["vlm"] for change in self.changed if change["effect"] in _ASKED_AGAIN)}
        # what ended in an error is asked again whenever `collect` runs; the budget counts it
        never = {row["vlm"]: row["num_to_ask"] - row["num_failed"] for row in self.to_ask if row["vlm"] not in mine}
        others = {vlm: number for vlm, number in never.items() if number}
        if not others or self.may_ask_others:
            return None
        named = ", ".join(f"{vlm} ({number} questions)" for vlm, number in others.items())
        return (
            f"it would ask VLMs that are neither new nor changed: {named}. Put their answers back first (`dvc pull`, "
            "then `python -m tasks.collect --restore`), or allow it with --ask-others."
        )


def refused_by(budget_usd: float | None, to_ask: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a budget forbids asking, with what would let it; None where it does not.

    Args:
        budget_usd: what may be spent; None for no limit.
        to_ask: the forecast of each VLM that would be asked.
    """
    if budget_usd is None:
        return None
    if unpriced := [row["vlm"] for row in to_ask if row["expected_usd"] is None]:
        return (
            f"no price of {', '.join(unpriced)} is known, so nobody can say that ${budget_usd:.2f} is enough. "
            "Write one into the block (usd_per_call: 0 where asking is free)."
        )
    expected_usd = sum(row["expected_usd"] for row in to_ask)
    if expected_usd <= budget_usd:
        return None
    return (
        f"asking should cost ${expected_usd:.4f}, which is beyond the budget of ${budget_usd:.4f}. Give the new VLM a "
        "smaller `sample`, or allow more."
    )


def to_ask_of(forecast: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The rows of a forecast that are about VLMs that would be asked."""
    return tuple(row for row in forecast["vlms"] if row["num_to_ask"])


def forecast(folder: Path) -> dict[str, Any]:
    """What `tasks.collect --dry-run` says of each VLM (`vlms`) and of all; no VLM where nobody is asked.

    Raises:
        flows.command.CommandError: it cannot say, e.g. because the queries are not there.
    """
    found: dict[str, Any] = run_json(["python", "-m", "tasks.collect", "--dry-run", "--json"], folder=folder, log=log)
    return found


def read_plan(folder: Path, *, since: str, budget_usd: float | None = None, may_ask_others: bool = False) -> Plan:
    """Ask everybody who knows, and put it together; changes and asks nothing.

    Args:
        folder: the checkout.
        since: a commit; params.yaml as it was then is compared with.
        budget_usd: what may be spent.
        may_ask_others: whether VLMs that did not change may be asked what they lack.

    Raises:
        UserError: no such commit, no params.yaml there, or one of both is none.
        flows.command.CommandError: a command that was asked failed.
        dvc.exceptions.DvcException: no DVC tree, or its lock is held.
    """
    found = _changes(folder, since)
    champion = run_json(["python", "-m", "tasks.register", "champion", "--json"], folder=folder, log=log)
    served = set(champion["vlms"]) if champion else set(found["vlms"]) - _added(found)
    verdict = read_json(folder / VERDICT)
    graph = read_graph(folder)
    may_run = graph.may_run()
    missing = {name for name, texts in graph.changes.items() if any(text.endswith(_NEVER_RAN) for text in texts)}
    otherwise = graph.downstream({*graph.edited, *missing})
    return Plan(
        since=since,
        champion=champion,
        learn={vlm: pool for vlm, pool in found["vlms"].items() if vlm not in served},
        retire=tuple(sorted(served - set(found["vlms"]))),
        changes=tuple(found["changes"]),
        sections=tuple(found["sections"]),
        forecast=forecast(folder) if found["asks"] else None,
        stale=tuple(stage for stage in graph.order if stage in may_run),
        otherwise_stale=tuple(stage for stage in graph.order if stage in otherwise),
        evaluated=_evaluated(folder / LOCK),
        is_proposed=verdict.get("decision") == "proposed",
        budget_usd=budget_usd,
        may_ask_others=may_ask_others,
    )


def _added(found: dict[str, Any]) -> set[str]:
    return {change["vlm"] for change in found["changes"] if change["kind"] == "added"}


def _changes(folder: Path, since: str) -> dict[str, Any]:
    """What changed between params.yaml at `since` and params.yaml here."""
    if _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{since}^{{commit}}").returncode:
        raise UserError(
            f"git knows no commit {since!r} here. Name one, e.g. HEAD~1 or origin/main; in a shallow clone "
            "`git fetch --unshallow` first."
        )
    shown = _git(folder, "show", f"{since}:./{PARAMS}")
    if shown.returncode:
        raise UserError(f"there was no {PARAMS} at {since}; name a commit that has one.")
    with tempfile.NamedTemporaryFile("w", suffix=f"-{PARAMS}", encoding="utf-8") as before:
        before.write(shown.stdout)
        before.flush()
        command = ["python", "-m", "tasks.common.vlm_changes", "--before", before.name, "--json"]
        try:
            found: dict[str, Any] = run_json(command, folder=folder, log=log)
        except CommandError as error:
            if error.code != 2:
                raise
            raise UserError(str(error).replace(before.name, f"{PARAMS} at {since}")) from None
    return found


def _evaluated(lock: Path) -> frozenset[str]:
    """The VLMs that the last evaluation knew, by DVC's own record of its params."""
    found: Any = YAML(typ="safe").load(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    for key in ("stages", "cascade_eval", "params", str(PARAMS), "vlms"):
        found = (found or {}).get(key)
    return frozenset(str(block["name"]) for block in found or ())


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def as_lines(plan: Plan) -> Sequence[tuple[str, str]]:
    """The plan as pairs of a heading and what stands beside it; both the text and the Markdown are made of them."""
    lines = [("champion", _champion(plan))]
    kinds = {change["vlm"]: change for change in plan.changes if change["kind"] == "added"}
    for vlm, pool in plan.learn.items():
        lines.append(("learn", f"{vlm} (pool {pool}): {_why_learn(plan, vlm, kinds.get(vlm))}"))
    removed = [change for change in plan.changes if change["kind"] == "removed"]
    lines += [("retire", f"{vlm}: {_RETIRE}") for vlm in plan.retire]
    lines += [
        ("removed", f"{change['vlm']}: {change['does']}") for change in removed if change["vlm"] not in plan.retire
    ]
    for change in plan.changed:
        lines.append(("changed", f"{change['vlm']} (pool {change['pool']}): {change['does']}"))
        lines += [("", f"{each['setting']}: {each['before']!r} -> {each['after']!r}") for each in change["settings"]]
    if plan.sections:
        lines.append(("also changed", f"{', '.join(plan.sections)} of {PARAMS}: train-arms/full is for these"))
    lines += [("ask", _asked(row)) for row in plan.to_ask]
    lines.append(("cost", _cost(plan)))
    if plan.stages:
        lines.append(
            ("stages", f"{', '.join(plan.stages)} (at most; a stage whose inputs come out the same is skipped)")
        )
    if plan.also_stale:
        lines.append(("also stale", f"{', '.join(plan.also_stale)}: for other reasons than the list of VLMs"))
    lines.append(("start", f"train-arms/{plan.mode}" if plan.mode else _nothing(plan)))
    return [*lines, *(("refused", text) for text in plan.refusals)]


_RETIRE = (
    "the champion no longer chooses it, from now on and without training; its labels leave the tables at the next one"
)


def _champion(plan: Plan) -> str:
    if plan.champion is None:
        return f"none yet; compared with the list of VLMs at {plan.since} alone"
    champion = plan.champion
    return f"version {champion['version']} ({champion['strategy']}), chooses from {', '.join(champion['vlms'])}"


def _why_learn(plan: Plan, vlm: str, added: dict[str, Any] | None) -> str:
    if added is not None:
        return str(added["does"])
    if vlm in plan.evaluated:
        return f"known at {plan.since} already, learned, and not among what the champion chooses from"
    return f"known at {plan.since} already, not learned yet"


def _asked(row: dict[str, Any]) -> str:
    costs = "no price is known"
    if row["expected_usd"] is not None:
        costs = f"${row['expected_usd']:.4f} expected, ${row['worst_usd']:.4f} at most"
    known = f", {row['num_known']} of {row['num_questions']} are known" if row["num_known"] else ""
    failed = f", {row['num_failed']} ended in an error before" if row["num_failed"] else ""
    return f"{row['vlm']}: {row['num_to_ask']} questions, {costs}, about {row['expected_s']:.0f} s{known}{failed}"


def _cost(plan: Plan) -> str:
    if plan.forecast is None:
        return "nobody is asked: answers are recorded ones"
    if not plan.to_ask:
        return "nobody is asked"
    calls = sum(row["num_to_ask"] for row in plan.to_ask)
    budget = "no limit was given" if plan.budget_usd is None else f"${plan.budget_usd:.4f} may be spent"
    return f"{calls} calls, ${plan.expected_usd:.4f} expected, ${plan.worst_usd:.4f} at most; {budget}"


def _nothing(plan: Plan) -> str:
    if not plan.changes and not plan.learn and not plan.retire:
        left = f"; stale since before: {', '.join(plan.stale)} (train-arms/full)" if plan.stale else ""
        return f"nothing: the list of VLMs is the one at {plan.since}, and the champion knows it{left}"
    if plan.retire:
        return "nothing to train"
    return "nothing to train: what is named here was learned; `python -m tasks.register promote` compares"


def as_text(plan: Plan) -> str:
    """What people read in a terminal."""
    return "\n".join(f"{heading:<12}  {text}" for heading, text in as_lines(plan))


def as_markdown(plan: Plan) -> str:
    """The same for a comment."""
    rows = [f"| {heading} | {_cell(text)} |" for heading, text in as_lines(plan)]
    verdict = "**refused**: nothing was started" if plan.refusals else "what this change asks for"
    return "\n".join([f"### Retraining since `{plan.since}`: {verdict}", "", "| | |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
