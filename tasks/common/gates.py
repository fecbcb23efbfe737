"""Gates: what must hold of a stage's output before it is published. Only this module knows Great Expectations.

A stage hands over checks: an invariant for people (`tasks/common/invariants/`), the rule in numbers, and a view of the
data to hold it against. Rows are judged shard by shard; what needs the whole table (uniqueness, coverage, shares) comes
as a small frame that polars made. So memory does not grow with the number of rows.

Where a `stop` fails, the stage ends with exit code 1 and publishes nothing; a `warn` is said once and recorded. Either
way all failing rows lie in `.arms/gates/<stage>/<name>.parquet`, with pages for a browser in `data_docs/` beside them;
a run without failures leaves neither. A stage that passed writes `gates/<stage>.json`, the same for the same data.

Great Expectations is imported when something is judged (it takes seconds), with its analytics off.
"""

import contextlib
import gc
import html
import importlib.util
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import polars as pl

from arms_model.errors import DataError
from tasks.common.files import write_json
from tasks.common.tables import write_parquet

log = logging.getLogger(__name__)
FOLDER = Path("gates")  # what passed, an output of the stage
KEPT = Path(".arms/gates")  # what failed, on this machine only
SHARD_ROWS = 100_000
_NUM_NAMED = 20  # failing rows that a message names
_UNUSED = ("sqlalchemy", "boto3", "botocore")  # by what is judged here: its ways to databases and clouds
_MAX_PAGES = 20  # failing shards of one view that get a page for the browser

Severity = Literal["stop", "warn"]


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """What must hold, for people.

    Attributes:
        name: begins with the stage's.
        sentence: what holds when all is well.
        severity: `stop` publishes nothing; `warn` is said and recorded.
        bounds: where the bounds come from, for the guide.
        remedy: what to do when it fails.
    """

    name: str
    sentence: str
    severity: Severity = "stop"
    bounds: str = ""
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How Great Expectations holds an invariant.

    Attributes:
        kind: its class.
        arguments: its arguments.
        columns: those of the view that it looks at.
        bounds: the numbers or names in it, for the record.
    """

    kind: str
    arguments: dict[str, Any]
    columns: tuple[str, ...]
    bounds: dict[str, Any] = field(default_factory=dict)


def not_empty(column: str) -> Rule:
    """A text with more than white space."""
    return Rule(kind="ExpectColumnValuesToMatchRegex", arguments={"column": column, "regex": r"\S"}, columns=(column,))


def is_true(column: str) -> Rule:
    """A flag that polars worked out."""
    arguments = {"column": column, "value_set": [True]}
    return Rule(kind="ExpectColumnValuesToBeInSet", arguments=arguments, columns=(column,))


def one_of(column: str, values: Sequence[str]) -> Rule:
    """One of a few names."""
    arguments = {"column": column, "value_set": list(values)}
    bounds = {"values": list(values)}
    return Rule(kind="ExpectColumnValuesToBeInSet", arguments=arguments, columns=(column,), bounds=bounds)


def within(column: str, *, least: float | None = None, most: float | None = None) -> Rule:
    """A number from `least` to `most`; null passes, what is not a number does not."""
    bounds = {key: value for key, value in (("min", least), ("max", most)) if value is not None}
    arguments = {"column": column, "min_value": least, "max_value": most}
    return Rule(kind="ExpectColumnValuesToBeBetween", arguments=arguments, columns=(column,), bounds=bounds)


def none_of_them(column: str) -> Rule:
    """A count of faults: 0."""
    arguments = {"column": column, "min_value": 0, "max_value": 0}
    return Rule(kind="ExpectColumnValuesToBeBetween", arguments=arguments, columns=(column,))


def same(column: str, other: str) -> Rule:
    """Two columns that agree; a row in which one is null passes."""
    arguments = {"column_A": column, "column_B": other, "ignore_row_if": "either_value_is_missing"}
    return Rule(kind="ExpectColumnPairValuesToBeEqual", arguments=arguments, columns=(column, other))


def at_least(column: str, least: str, *, bounds: dict[str, Any]) -> Rule:
    """A number that reaches the one in another column."""
    arguments = {"column_A": column, "column_B": least, "or_equal": True, "ignore_row_if": "either_value_is_missing"}
    kind = "ExpectColumnPairValuesAToBeGreaterThanB"
    return Rule(kind=kind, arguments=arguments, columns=(column, least), bounds=bounds)


@dataclass(frozen=True, kw_only=True)
class View:
    """Data to hold rules against.

    Attributes:
        name: what it is called in the pages for a browser.
        key: the columns that name a row.
        shards: gives the rows, part by part.
    """

    name: str
    key: tuple[str, ...]
    shards: Callable[[], Iterator[pl.DataFrame]]


def table_view(name: str, frame: pl.DataFrame, *, key: Sequence[str]) -> View:
    """A view of a table or of a small frame made from one."""
    return View(name=name, key=tuple(key), shards=lambda: frame.iter_slices(SHARD_ROWS))


def parts(*frames: pl.DataFrame, by: str) -> Iterator[tuple[pl.DataFrame, ...]]:
    """Tables about a shard at a time, such that rows with the same `by` come together.

    So what needs rows of several tables, or all rows of one key, needs no more memory for a larger table.
    """
    num_parts = max(1, math.ceil(max(frame.height for frame in frames) / SHARD_ROWS))
    if num_parts == 1:
        yield frames
        return
    part_of = [(frame[by].hash() % num_parts).cast(pl.UInt32) for frame in frames]
    for number in range(num_parts):
        yield tuple(frame.filter(part == number) for frame, part in zip(frames, part_of, strict=True))


@dataclass(frozen=True, kw_only=True)
class Check:
    """One invariant with what it is held against.

    Attributes:
        invariant: what must hold.
        rule: how.
        view: against what.
        checked: how many things were looked at, where the view is a summary; None: the view's rows.
        rows: gives the rows behind a failing summary; None: the view's own failing rows.
        key: the columns that name those rows; None: the view's.
        declared: how many would fail and are declared in params; the view leaves them out.
        observed: a small summary for the record.
    """

    invariant: Invariant
    rule: Rule
    view: View
    checked: int | None = None
    rows: Callable[[], pl.DataFrame] | None = None
    key: tuple[str, ...] | None = None
    declared: int = 0
    observed: dict[str, Any] | None = None


def unique(invariant: Invariant, frame: pl.DataFrame, *, key: Sequence[str], shown: Sequence[str] = ()) -> Check:
    """The check that no two rows of `frame` have the same `key`.

    Args:
        invariant: what must hold.
        frame: the table.
        key: columns that together stand once.
        shown: further columns that name a row.
    """

    def twice() -> Iterator[pl.DataFrame]:
        for (part,) in parts(frame, by=key[0]):
            yield part.filter(pl.struct(list(key)).is_duplicated())

    num_twice = sum(rows.height for rows in twice())
    summary = pl.DataFrame({"num_rows": [frame.height], "num_twice": [num_twice]})
    return Check(
        invariant=invariant,
        rule=none_of_them("num_twice"),
        view=table_view(invariant.name, summary, key=["num_rows"]),
        checked=frame.height,
        rows=lambda: pl.concat(list(twice())).sort([*key, *shown]),
        key=(*key, *shown),
    )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one check: `failed` rows of `checked`, the failing rows, and the columns that name one."""

    check: Check
    checked: int
    failed: int
    rows: pl.DataFrame
    shown: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """For `gates/<stage>.json`."""
        invariant = self.check.invariant
        return {
            "name": invariant.name,
            "sentence": invariant.sentence,
            "severity": invariant.severity,
            "bounds": self.check.rule.bounds,
            "checked": self.checked,
            "failed": self.failed,
            "declared": self.check.declared,
            "success": not self.failed,
            "observed": self.check.observed,
        }

    def told(self, kept: Path) -> str:
        """For people: name, sentence, how many, which first, where all are, what to do."""
        invariant, columns = self.check.invariant, self.shown
        first = self.rows.select(columns).head(_NUM_NAMED).rows()
        named = "; ".join(", ".join(f"{c} {_short(v)}" for c, v in zip(columns, row, strict=True)) for row in first)
        return (
            f"{invariant.name}: {invariant.sentence} {self.failed} of {self.checked} fail, "
            f"first: {named}. All failing rows: {kept / invariant.name}.parquet. {invariant.remedy}"
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of a stage's checks, none of which stops it."""

    stage: str
    findings: tuple[Finding, ...]

    def described(self) -> dict[str, Any]:
        """The record; nothing in it depends on when or where the stage ran."""
        warned = [finding.failed for finding in self.findings if finding.check.invariant.severity == "warn"]
        return {
            "stage": self.stage,
            "success": True,
            "num_warnings": sum(warned),
            "num_declared": sum(finding.check.declared for finding in self.findings),
            "expectations": [finding.described() for finding in self.findings],
        }

    def write(self) -> None:
        """Write `gates/<stage>.json`."""
        write_json(FOLDER / f"{self.stage}.json", self.described())


def hold(stage: str, checks: Sequence[Check]) -> Findings:
    """Hold all checks.

    Args:
        stage: the stage's name.
        checks: with distinct names.

    Returns:
        What was found; `write` puts it on record once the stage has published.

    Raises:
        DataError: a `stop` failed; the text names all that failed and their first rows.
    """
    kept = KEPT / stage
    shutil.rmtree(kept, ignore_errors=True)
    judge = _Judge(kept / "data_docs")
    views = {id(check.view): check.view for check in checks}
    found = [finding for view in views.values() for finding in judge.hold(view, [c for c in checks if c.view is view])]
    findings = sorted(found, key=lambda finding: [c.invariant.name for c in checks].index(finding.check.invariant.name))
    failing = [finding for finding in findings if finding.failed]
    for finding in failing:
        kept.mkdir(parents=True, exist_ok=True)
        write_parquet(kept / f"{finding.check.invariant.name}.parquet", finding.rows)
    if failing:
        judge.build_pages([finding.told(kept) for finding in failing])
    told = {severity: [f.told(kept) for f in failing if f.check.invariant.severity == severity] for severity in
            ("stop", "warn")}  # fmt: skip
    for text in told["warn"]:
        log.warning("warning: %s", text)
    if told["stop"]:
        raise DataError(
            f"{len(told['stop'])} of {len(checks)} gates failed; nothing was published.\n  "
            + "\n  ".join(told["stop"])
            + f"\n  Pages for a browser: {kept}/data_docs/index.html."
        )
    return Findings(stage=stage, findings=tuple(findings))


class _Judge:
    """Great Expectations, in memory: it writes nothing but the pages."""

    def __init__(self, pages: Path) -> None:
        self._gx = _import()
        types = self._gx.data_context.types.base
        in_memory = types.InMemoryStoreBackendDefaults(init_temp_docs_sites=False)  # its default makes a folder in /tmp
        config = types.DataContextConfig(store_backend_defaults=in_memory)
        self._context = self._gx.get_context(mode="ephemeral", project_config=config)
        self._context.variables.progress_bars = {"globally": False}
        self._pages = pages

    def hold(self, view: View, checks: Sequence[Check]) -> list[Finding]:
        """Hold the checks of one view, shard by shard."""
        expectations = [self._expectation(check) for check in checks]
        suite = self._context.suites.add(self._gx.ExpectationSuite(name=view.name, expectations=expectations))
        asset = self._context.data_sources.add_pandas(view.name).add_dataframe_asset("rows")
        whole = asset.add_batch_definition_whole_dataframe("all")
        run = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(name=view.name, data=whole, suite=suite)
        )
        columns = list(dict.fromkeys([*view.key, *(name for check in checks for name in check.rule.columns)]))
        failing: dict[str, list[pl.DataFrame]] = {check.invariant.name: [] for check in checks}
        num_rows = num_pages = 0
        for shard in view.shards():
            num_rows += shard.height
            frame = {"dataframe": shard.select(columns).to_pandas(use_pyarrow_extension_array=True)}
            result = whole.get_batch(batch_parameters=frame).validate(suite, result_format="COMPLETE")
            for name, rows in _failing_rows(result).items():
                failing[name].append(shard[rows])
            if not result.success and num_pages < _MAX_PAGES:  # kept for the pages, where every page names a few rows
                shown = {"result_format": "SUMMARY", "unexpected_index_column_names": list(view.key)}
                run.run(batch_parameters=frame, result_format=shown)
                num_pages += 1
        return [_finding(check, failing[check.invariant.name], num_rows) for check in checks]

    def _expectation(self, check: Check) -> Any:
        invariant = check.invariant
        return getattr(self._gx.expectations, check.rule.kind)(
            **check.rule.arguments,
            description=f"{invariant.name}: {invariant.sentence}",
            severity="critical" if invariant.severity == "stop" else "warning",
            meta={"name": invariant.name},
        )

    def build_pages(self, texts: Sequence[str]) -> None:
        """Write what failed as pages for a browser; `texts` tell it."""
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(self._pages.absolute()),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        self._context.add_data_docs_site(site_name="local", site_config=site)
        self._context.build_data_docs(site_names=["local"])
        _tell_in_index(self._pages, texts)


def _tell_in_index(folder: Path, texts: Sequence[str]) -> None:
    """Put what failed on top of the pages' index: its own list is drawn by scripts from elsewhere and empty offline."""
    index = folder / "index.html"
    pages = sorted((folder / "validations").rglob("*.html"))  # validations/<view>/__none__/<time>/<batch>.html
    items = [
        f'<li><a href="{quote(str(page.relative_to(folder)))}">{html.escape(page.parts[-4])}</a></li>' for page in pages
    ]
    head, body, rest = index.read_text(encoding="utf-8").partition("<body>")
    told = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
    index.write_text(f"{head}{body}<h2>What failed</h2>{told}<ul>{''.join(items)}</ul>{rest}", encoding="utf-8")


def _import() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    with warnings.catch_warnings(), _without(*_UNUSED), _no_collection():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own imports'
        _import_when_used("scipy.stats")
        import great_expectations
    return great_expectations


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Packages that can be done without are not there for a while, unless they have been imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails then, says importlib's documentation
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for garbage among what only grows: a fifth of the time of a large import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _import_when_used(name: str) -> None:
    """Its code runs when something of it is first asked for (the recipe of importlib's documentation)."""
    spec = importlib.util.find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)


def _failing_rows(result: Any) -> dict[str, list[int]]:
    """Name of the invariant -> the shard's rows that fail it.

    Raises:
        DataError: one could not be judged; that is never a pass.
    """
    failing = {}
    for each in result.results:
        name = each.expectation_config.meta["name"]
        if "unexpected_index_list" not in each.result:
            raise DataError(f"{name} could not be judged: {each.exception_info}. Please report it with these words.")
        if each.result["unexpected_index_list"]:
            failing[name] = [int(row) for row in each.result["unexpected_index_list"]]
    return failing


def _finding(check: Check, found: list[pl.DataFrame], num_rows: int) -> Finding:
    shown = (*check.view.key, *check.rule.columns)
    rows = pl.concat(found).sort(check.view.key, maintain_order=True) if found else pl.DataFrame()
    if found and check.rows is not None:
        rows, shown = check.rows(), check.key or shown
    return Finding(
        check=check,
        checked=num_rows if check.checked is None else check.checked,
        failed=rows.height,
        rows=rows,
        shown=tuple(dict.fromkeys(shown)),
    )


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) and not value.strip() else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
