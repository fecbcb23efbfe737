"""HELM and VHELM: run folders, as `helm-run` writes them and as they are published.

    python -m tasks.importers.helm benchmark_output/runs/v1 --media benchmark_output --out recorded

A run is one VLM on one scenario. Read are run_spec.json (which), scenario_state.json (questions, references, answers)
and per_instance_stats.json (right or wrong), or, where a run was published without its state, instances.json and
display_predictions.json. Pictures are files that `location` names, often with the folder of the machine that ran it:
what follows `benchmark_output/` is looked up under --media. Nothing is fetched.

Only the plain question is taken: perturbed copies and further trials are passed over. Queries with no or several
pictures are left out and counted. Where several references are right, as for alternative wordings, only HELM's own
right or wrong is kept, since one gold cannot tell.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import inside
from tasks.importers.choices import answer_type
from tasks.importers.command import make_parser, run_importer
from tasks.importers.reading import read_json
from tasks.importers.recording import Answer, Query, Recording, with_choices
from tasks.importers.rows import typed, typed_rows

log = logging.getLogger(__name__)
T = TypeVar("T")
SPEC, STATE, STATS = "run_spec.json", "scenario_state.json", "per_instance_stats.json"
INSTANCES, PREDICTIONS = "instances.json", "display_predictions.json"
METRICS = ("quasi_exact_match", "exact_match")
_MEDIA_ROOT = "benchmark_output/"
_CORRECT = "correct"
_JOINT = "multiple_choice_joint"  # the choices stand in the prompt; other ways of choosing compare likelihoods


@dataclass(frozen=True, kw_only=True)
class _AdapterSpec:
    method: str = ""
    model: str = ""
    model_deployment: str = ""


@dataclass(frozen=True, kw_only=True)
class _RunSpec:
    name: str
    adapter_spec: _AdapterSpec


@dataclass(frozen=True, kw_only=True)
class _MediaObject:
    content_type: str
    text: str | None = None
    location: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Content:
    media_objects: list[_MediaObject] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Text:
    text: str = ""
    multimedia_content: _Content | None = None


@dataclass(frozen=True, kw_only=True)
class _Reference:
    output: _Text
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Instance:
    input: _Text
    references: list[_Reference]
    id: str
    perturbation: object = None


@dataclass(frozen=True, kw_only=True)
class _Completion:
    text: str


@dataclass(frozen=True, kw_only=True)
class _Result:
    success: bool
    completions: list[_Completion] = field(default_factory=list)
    request_time: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class _RequestState:
    instance: _Instance
    result: _Result | None = None
    reference_index: int | None = None
    request_mode: str | None = None
    train_trial_index: int = 0


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    instance_id: str
    predicted_text: str
    stats: dict[str, float] = field(default_factory=dict)
    perturbation: object = None
    reference_index: int | None = None
    train_trial_index: int = 0


@dataclass(frozen=True, kw_only=True)
class _StatName:
    name: str
    perturbation: object = None


@dataclass(frozen=True, kw_only=True)
class _Stat:
    name: _StatName
    mean: float | None = None


@dataclass(frozen=True, kw_only=True)
class _InstanceStats:
    instance_id: str
    stats: list[_Stat]
    perturbation: object = None
    train_trial_index: int = 0


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One question and what the VLM made of it, from either of the two layouts."""

    instance: _Instance
    stats: dict[str, float]
    output: str | None = None
    error: str | None = None
    latency_s: float | None = None
    is_whole: bool = True  # one request for the question, not one for each choice


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run's name and specification say."""

    folder: Path
    benchmark: str
    task: str
    prefix: str  # what the ids of its queries begin with
    vlm: str
    is_choice: bool


def import_runs(options: argparse.Namespace, recording: Recording) -> None:
    """Read run folders and the pictures that they name into `recording`."""
    runs = [_run(folder, options) for path in options.runs for folder in _run_folders(path)]
    vlms = sorted({run.vlm for run in runs})
    if options.vlm and len(vlms) > 1:
        raise ConfigError(f"--vlm names one VLM, but the runs are of {', '.join(vlms)}; import them one by one.")
    for run in runs:
        log.info("%s: %s", run.prefix, options.vlm or run.vlm)
        for asked in _read_state(run, recording) if (run.folder / STATE).exists() else _read_display(run, recording):
            try:
                _take(asked, run, options, recording)
            except DataError as error:
                recording.fault(f"{run.folder}, instance {asked.instance.id}: {error}")


def _take(asked: _Asked, run: _Run, options: argparse.Namespace, recording: Recording) -> None:
    instance = asked.instance
    query_id = f"{run.prefix}/{instance.id}"
    media = instance.input.multimedia_content.media_objects if instance.input.multimedia_content else []
    pictures = [item.location for item in media if item.content_type.startswith("image/") and item.location]
    golds = list(dict.fromkeys(ref.output.text for ref in instance.references if _CORRECT in ref.tags))
    verdict = _verdict(asked.stats, options.metric)
    reason = None
    if len(pictures) != 1:
        reason = "several pictures" if pictures else "no picture"
    elif any(ref.output.multimedia_content for ref in instance.references):
        reason = "pictures among the references"
    elif not golds:
        reason = "no gold answer"
    elif not asked.is_whole:
        reason = "no answer as text (answers by likelihood)"
    elif len(golds) > 1 and verdict is None and asked.error is None:
        reason = "several gold answers, and no right or wrong by the metric"
    if reason:
        recording.leave_out(query_id, reason)
        return
    recording.add_query(_query(query_id, run, instance, golds, options), _picture(pictures[0], options.media))
    recording.add_answer(
        Answer(
            query_id=query_id,
            vlm=options.vlm or run.vlm,
            output=asked.output if len(golds) == 1 else None,
            reference_correct=None if asked.error else verdict,
            error=asked.error,
            latency_s=asked.latency_s,
        )
    )


def _query(query_id: str, run: _Run, instance: _Instance, golds: Sequence[str], options: argparse.Namespace) -> Query:
    media = instance.input.multimedia_content.media_objects if instance.input.multimedia_content else []
    parts = [instance.input.text, *(item.text or "" for item in media)]
    answer, choices = golds[0].strip(), None
    if run.is_choice:
        choices = [reference.output.text for reference in instance.references]
        place = next(place for place, reference in enumerate(instance.references) if _CORRECT in reference.tags)
        answer = chr(ord("A") + place)
    return Query(
        query_id=query_id,
        benchmark=run.benchmark,
        task=run.task,
        language=options.language,
        question=with_choices("\n".join(part.strip() for part in parts if part.strip()), choices),
        choices=choices,
        answer=answer,
        answer_type=answer_type(answer, choices),
        licence=options.licence,
    )


def _picture(location: str, media: Path) -> Path:
    """The file under --media; what stands before `benchmark_output/` belongs to the machine that ran it."""
    return inside(media, location.rpartition(_MEDIA_ROOT)[2])


def _verdict(stats: dict[str, float], metric: str | None) -> bool | None:
    """Right or wrong by the metric, or by the first of `METRICS` that is there; None for values between."""
    for name in (metric,) if metric else METRICS:
        if name in stats:
            return {0.0: False, 1.0: True}.get(stats[name])
    return None


def _read_state(run: _Run, recording: Recording) -> Iterator[_Asked]:
    """The plain questions in scenario_state.json, with the run's own statistics where it has some."""
    stats = _read_stats(run, recording) if (run.folder / STATS).exists() else {}
    state = read_json(run.folder / STATE)
    rows = state.get("request_states") if isinstance(state, dict) else None
    for request in _typed(_RequestState, rows, run.folder / STATE, recording):
        result, is_plain = request.result, request.instance.perturbation is None and not request.train_trial_index
        if result is None or not is_plain or request.request_mode == "calibration":
            continue
        has_text = result.success and bool(result.completions)
        yield _Asked(
            instance=request.instance,
            stats=stats.get(request.instance.id, {}),
            output=result.completions[0].text if has_text else None,
            error=None if has_text else result.error or "the request failed",
            latency_s=result.request_time,
            is_whole=request.reference_index is None,
        )


def _read_display(run: _Run, recording: Recording) -> Iterator[_Asked]:
    """The plain questions in instances.json with their answers in display_predictions.json."""
    read = _typed(_Instance, read_json(run.folder / INSTANCES), run.folder / INSTANCES, recording)
    instances = {instance.id: instance for instance in read if instance.perturbation is None}
    for prediction in _typed(_Prediction, read_json(run.folder / PREDICTIONS), run.folder / PREDICTIONS, recording):
        if prediction.perturbation is not None or prediction.train_trial_index:
            continue
        if prediction.instance_id not in instances:
            recording.fault(f"{run.folder / PREDICTIONS}: instance {prediction.instance_id} is not in {INSTANCES}")
            continue
        yield _Asked(
            instance=instances[prediction.instance_id],
            stats=prediction.stats,
            output=prediction.predicted_text,
            is_whole=prediction.reference_index is None,
        )


def _read_stats(run: _Run, recording: Recording) -> dict[str, dict[str, float]]:
    """Statistics of the plain questions, by instance and name."""
    stats: dict[str, dict[str, float]] = {}
    for entry in _typed(_InstanceStats, read_json(run.folder / STATS), run.folder / STATS, recording):
        if entry.perturbation is None and not entry.train_trial_index:
            means = {stat.name.name: stat.mean for stat in entry.stats if stat.name.perturbation is None}
            found = stats.setdefault(entry.instance_id, {})
            found.update({name: mean for name, mean in means.items() if mean is not None})
    return stats


def _typed(row_class: type[T], rows: object, path: Path, recording: Recording) -> Iterator[T]:
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of {'request_states' if path.name == STATE else 'objects'}.")
    return (row for _, row in typed_rows(row_class, enumerate(rows, start=1), f"{path}, row", fault=recording.fault))


def _run_folders(path: Path) -> list[Path]:
    """The run folders at or right under `path`."""
    if (path / SPEC).exists():
        return [path]
    folders = sorted(found.parent for found in path.glob(f"*/{SPEC}"))
    if not folders:
        raise ConfigError(f"{path} holds no {SPEC}, nor does a folder in it; name a run's folder, or that of a suite.")
    return folders


def _run(folder: Path, options: argparse.Namespace) -> _Run:
    spec = typed(_RunSpec, read_json(folder / SPEC), str(folder / SPEC))
    name, _, arguments = spec.name.partition(":")
    own = [its for its in arguments.split(",") if its and not its.startswith(("model=", "model_deployment="))]
    scenario = ":".join(filter(None, (name, ",".join(own))))
    model = spec.adapter_spec.model or spec.adapter_spec.model_deployment
    if not model:
        raise DataError(f"{folder / SPEC}: adapter_spec names no model.")
    return _Run(
        folder=folder,
        benchmark=options.benchmark or name,
        task=scenario if options.benchmark else ",".join(own) or name,
        prefix=f"{options.benchmark}/{scenario}" if options.benchmark else scenario,
        vlm=model.rpartition("/")[2],
        is_choice=spec.adapter_spec.method.startswith(_JOINT),
    )


def make_options() -> argparse.ArgumentParser:
    """The command's options."""
    parser = make_parser(
        "helm",
        description="Import run folders of HELM or VHELM into a recorded folder.",
        example="python -m tasks.importers.helm benchmark_output/runs/v1 --media benchmark_output --out recorded",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="run folders, or a suite's folder that holds some")
    add("--media", type=Path, required=True, metavar="FOLDER", help="where pictures lie: their benchmark_output folder")
    add("--metric", metavar="NAME", help=f"HELM's own right or wrong (default: the first of {', '.join(METRICS)})")
    add(
        "--benchmark",
        metavar="NAME",
        help="one name for all runs' scenarios, which become its tasks (default: each its own)",
    )
    add("--vlm", metavar="NAME", help="what to call the VLM (default: its model without the organisation)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the importer; returns the exit code."""
    return run_importer("helm", make_options(), import_runs, argv)


if __name__ == "__main__":
    sys.exit(main())
