import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common import recorded
from tasks.importers.helm import main


def _instance(number: int, question: str, references: dict[str, bool], **further: Any) -> dict[str, Any]:
    return {
        "input": {
            "text": "",
            "multimedia_content": {
                "media_objects": [
                    {"content_type": "image/png", "location": f"/far/benchmark_output/scenarios/toy/{number}.png"},
                    {"content_type": "text/plain", "text": question},
                ]
            },
        },
        "references": [
            {"output": {"text": text}, "tags": ["correct"] if is_right else []} for text, is_right in references.items()
        ],
        "split": "test",
        "id": f"id{number}",
    } | further


def _state(instance: dict[str, Any], text: str | None, **further: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"success": False, "completions": [], "error": "429 too many requests"}
    if text is not None:
        result = {"success": True, "completions": [{"text": text, "logprob": 0, "tokens": []}], "request_time": 0.25}
    return {"instance": instance, "train_trial_index": 0, "request": {}, "result": result | {"cached": False}} | further


def _stats(instance_id: str, value: float, **further: Any) -> dict[str, Any]:
    stats = [
        {"name": {"name": "num_references", "split": "test"}, "count": 1, "sum": 2, "mean": 2.0},
        {"name": {"name": "exact_match", "split": "test"}, "count": 1, "sum": value, "mean": value},
    ]
    return {"instance_id": instance_id, "train_trial_index": 0, "stats": stats} | further


class Runs:
    """Run folders of two made-up scenarios: one of choices, one of short answers with alternatives."""

    def __init__(self, suite: Path) -> None:
        self.suite = suite
        colours = {"red": False, "green": True, "blue": False}
        perturbed = {"perturbation": {"name": "typos"}}
        perturbed_state = _instance(0, "Which  colour?", colours, **perturbed)
        self.choice = [
            _state(_instance(0, "Which colour?", colours), " B"),
            _state(_instance(1, "Which shade?", colours), None),
            _state(perturbed_state, "A"),
            _state(_instance(2, "Which hue?", colours), "A", train_trial_index=1),
        ]
        self.free = [
            _state(_instance(0, "How many?", {"3": True}), "4"),
            _state(_instance(1, "What is it?", {"a square": True, "a box": True}), "box"),
        ]
        self.free_stats = [_stats("id0", 0.0), _stats("id1", 1.0), _stats("id0", 1.0, **perturbed)]

    def write(self, model: str = "toylab/vlm-a") -> Path:
        short = model.replace("/", "_")
        self._write("toy_choice:subject=hue", short, model, "multiple_choice_joint", self.choice, None)
        self._write("toy_free:", short, model, "generation", self.free, self.free_stats)
        return self.suite

    def write_published(self) -> Path:
        """The same runs without their states."""
        suite = self.write()
        for folder in suite.iterdir():
            states = json.loads((folder / "scenario_state.json").read_text())["request_states"]
            stats = json.loads((folder / "per_instance_stats.json").read_text()) if "free" in folder.name else []
            means = {entry["instance_id"]: {"exact_match": entry["stats"][1]["mean"]} for entry in stats[:2]}
            predictions = [
                {
                    "instance_id": state["instance"]["id"],
                    "perturbation": state["instance"].get("perturbation"),
                    "train_trial_index": state["train_trial_index"],
                    "predicted_text": state["result"]["completions"][0]["text"],
                    "stats": means.get(state["instance"]["id"], {}),
                }
                for state in states
                if state["result"]["success"]
            ]
            (folder / "instances.json").write_text(json.dumps([state["instance"] for state in states]))
            (folder / "display_predictions.json").write_text(json.dumps(predictions))
            (folder / "scenario_state.json").unlink()
            (folder / "per_instance_stats.json").unlink(missing_ok=True)
        return suite

    def _write(self, scenario: str, short: str, model: str, method: str, states: Any, stats: Any) -> None:
        name = f"{scenario}{'' if scenario.endswith(':') else ','}model={short}"
        folder = self.suite / name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "adapter_spec": {"method": method, "model": model, "max_tokens": 5}, "groups": []}
        (folder / "run_spec.json").write_text(json.dumps(spec))
        (folder / "scenario_state.json").write_text(json.dumps({"adapter_spec": {}, "request_states": states}))
        if stats:
            (folder / "per_instance_stats.json").write_text(json.dumps(stats))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs/v1")


@pytest.fixture
def media(tmp_path: Path, picture: Any) -> Path:
    """A benchmark_output folder with the scenarios' pictures."""
    folder = tmp_path / "media"
    (folder / "scenarios/toy").mkdir(parents=True)
    for number in range(3):
        (folder / f"scenarios/toy/{number}.png").write_bytes(picture(number))
    return folder


def test_runs_become_a_recorded_folder(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any, picture: Any
) -> None:
    run = run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    queries = recorded.read_queries(tmp_path / "out")
    assert queries.select("query_id", "benchmark", "task", "answer", "answer_type").rows() == [
        ("toy_choice:subject=hue/id0", "toy_choice", "subject=hue", "B", "choice"),
        ("toy_choice:subject=hue/id1", "toy_choice", "subject=hue", "B", "choice"),
        ("toy_free/id0", "toy_free", "toy_free", "3", "free"),
        ("toy_free/id1", "toy_free", "toy_free", "a square", "free"),
    ]
    assert queries["question"][0] == "Which colour?\nA. red\nB. green\nC. blue"
    assert queries["choices"].to_list() == [["red", "green", "blue"]] * 2 + [None] * 2
    assert (tmp_path / "out" / queries["image"][1]).read_bytes() == picture(1)
    outputs = recorded.read_outputs(tmp_path / "out")
    assert outputs["vlm"].unique().to_list() == ["vlm-a"]
    assert outputs.select("output", "imported_correct", "error", "latency_s").rows() == [
        (" B", None, None, 0.25),
        (None, None, "429 too many requests", None),
        ("4", False, None, 0.25),
        (None, True, None, 0.25),  # two right wordings: HELM's own verdict
    ]


def test_published_runs_without_state_give_the_same_queries_and_outputs(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any
) -> None:
    assert run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "whole").code == 0
    run = run_importer(main, runs.write_published(), "--media", media, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    whole, published = (recorded.read_queries(tmp_path / name) for name in ("whole", "out"))
    assert published.equals(whole.filter(whole["query_id"] != "toy_choice:subject=hue/id1"))  # the failed request
    columns = ["query_id", "vlm", "output", "imported_correct"]
    whole, published = (recorded.read_outputs(tmp_path / name) for name in ("whole", "out"))
    assert published.select(columns).equals(whole.filter(whole["error"].is_null()).select(columns))


def test_imported_folder_goes_through_the_stages(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any, labelled: Any
) -> None:
    assert run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out").code == 0
    assert labelled(tmp_path / "out").select("query_id", "correct").rows() == [
        ("toy_choice:subject=hue/id0", True), ("toy_free/id0", False), ("toy_free/id1", True),
    ]  # fmt: skip


def test_runs_of_several_vlms_share_queries(tmp_path: Path, runs: Runs, media: Path, run_importer: Any) -> None:
    runs.write("toylab/vlm-a")
    runs.write("otherlab/vlm-b")
    run = run_importer(main, runs.suite, "--media", media, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    assert recorded.read_queries(tmp_path / "out").height == 4
    assert recorded.read_outputs(tmp_path / "out").height == 8
    run = run_importer(main, runs.suite, "--media", media, "--vlm", "x", "--out", tmp_path / "other")
    assert (run.code, "the runs are of vlm-a, vlm-b" in run.err) == (2, True)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://example.org/0.png", "is a URL, and nothing is fetched here"),
        ("benchmark_output/../secret.png", "not followed"),
        ("/etc/passwd", "not followed"),
        ("benchmark_output/scenarios/toy/link.png", "not followed"),
        ("benchmark_output/scenarios/toy/9.png", "is missing"),
    ],
)
def test_location_outside_the_media_folder_is_not_followed(
    location: str, message: str, tmp_path: Path, runs: Runs, media: Path, run_importer: Any, picture: Any
) -> None:
    (tmp_path / "secret.png").write_bytes(picture(3))
    (media / "scenarios/toy/link.png").symlink_to(tmp_path / "secret.png")
    runs.choice[0]["instance"]["input"]["multimedia_content"]["media_objects"][0]["location"] = location
    run = run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out")
    assert run.code == 1
    assert message in run.err
    assert "instance id0" in run.err
    assert not (tmp_path / "out").exists()


def test_queries_we_cannot_use_are_left_out_and_counted(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any
) -> None:
    blind, double, ungraded, split = (copy.deepcopy(runs.free[1]) for _ in range(4))
    for number, state in enumerate((blind, double, ungraded, split), start=10):
        state["instance"]["id"] = f"id{number}"
    blind["instance"]["input"]["multimedia_content"]["media_objects"].pop(0)
    double["instance"]["input"]["multimedia_content"]["media_objects"] *= 2
    split["reference_index"] = 0
    runs.free += [blind, double, ungraded, split]
    run = run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out")
    assert run.code == 0, run.err
    for reason in ("no picture", "several pictures", "several gold answers", "no answer as text"):
        assert f"left out: 1 queries: {reason}" in run.out
    assert recorded.read_queries(tmp_path / "out").height == 4


def test_missing_picture_folder_is_a_users_mistake(tmp_path: Path, runs: Runs, run_importer: Any) -> None:
    run = run_importer(main, runs.write(), "--media", tmp_path / "nothing", "--out", tmp_path / "out")
    assert run.code == 2
    assert "is no folder" in run.err


def test_one_benchmarks_name_for_several_scenarios_keeps_their_queries_apart(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any
) -> None:
    options = ("--media", media, "--benchmark", "vhelm", "--out", tmp_path / "out")
    run = run_importer(main, runs.write(), *options)
    assert run.code == 0, run.err
    assert recorded.read_queries(tmp_path / "out").select("query_id", "benchmark", "task").rows() == [
        ("vhelm/toy_choice:subject=hue/id0", "vhelm", "toy_choice:subject=hue"),
        ("vhelm/toy_choice:subject=hue/id1", "vhelm", "toy_choice:subject=hue"),
        ("vhelm/toy_free/id0", "vhelm", "toy_free"),
        ("vhelm/toy_free/id1", "vhelm", "toy_free"),
    ]


def test_gold_among_choices_of_the_same_text_is_the_tagged_one(
    tmp_path: Path, runs: Runs, media: Path, run_importer: Any
) -> None:
    references = runs.choice[0]["instance"]["references"]
    references[0]["output"]["text"] = references[1]["output"]["text"]
    assert run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out").code == 0
    assert recorded.read_queries(tmp_path / "out")["answer"][0] == "B"


def test_another_metric_may_be_named(tmp_path: Path, runs: Runs, media: Path, run_importer: Any) -> None:
    run = run_importer(main, runs.write(), "--media", media, "--metric", "f1_score", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    assert "no right or wrong by the metric" in run.out


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("run_spec.json", b'{"name": "toy"}', 1, "field 'adapter_spec' is missing"),
        ("run_spec.json", b'{"name": "toy", "adapter_spec": {}}', 1, "names no model"),
        ("run_spec.json", b'{"name": ', 1, "no whole JSON file"),
        ("run_spec.json", None, 2, "holds no run_spec.json"),
        ("scenario_state.json", b'{"request_states": [{"instance": {"id', 1, "no whole JSON file"),
        ("scenario_state.json", b'{"request_states": {}}', 1, "expected a list of request_states"),
        ("scenario_state.json", b'{"request_states": [{"instance": {"id": 5}}]}', 1, "row 1: field"),
        ("scenario_state.json", '{"a": "é"}'.encode("latin-1"), 1, "iconv -f LATIN1"),
        ("scenario_state.json", '{"a": 1}'.encode("utf-16"), 1, "iconv -f UTF-16"),
        ("scenario_state.json", None, 1, "instances.json is missing"),
        ("per_instance_stats.json", b"[7]", 1, "row 1"),
    ],
)
def test_broken_run_is_refused(
    name: str,
    content: bytes | None,
    code: int,
    message: str,
    tmp_path: Path,
    runs: Runs,
    media: Path,
    run_importer: Any,
) -> None:
    folder = next(path for path in runs.write().iterdir() if "free" in path.name)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    run = run_importer(main, folder, "--media", media, "--out", tmp_path / "out")
    assert run.code == code, run.err
    assert message in run.err
    assert not (tmp_path / "out").exists()


def test_answer_cut_off_within_an_emoji_is_kept(tmp_path: Path, runs: Runs, media: Path, run_importer: Any) -> None:
    runs.free[0]["result"]["completions"][0]["text"] = "3 \ud83d"
    assert run_importer(main, runs.write(), "--media", media, "--out", tmp_path / "out").code == 0
    assert "3 �" in recorded.read_outputs(tmp_path / "out")["output"].to_list()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "example:\n  python -m tasks.importers.helm" in capsys.readouterr().out
