"""`make status`: every part is told by itself, and one that is away leaves a line that says so."""

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from flows import overview
from flows.screen import show
from tests.conftest import MakeTree
from tests.flows.mini import write_mini_tree

CHAMPION = {
    "model": "arms-router",
    "version": 3,
    "strategy": "incremental",
    "tau": 0.25,
    "vlms": ["old", "learnt"],
    "since": "2026-01-02T03:04:05+00:00",
    "who": "ann",
    "why": "promoted: better by 0.03",
}
WELL: dict[str, Any] = {
    "services": [{"name": "prefect-server", "state": "up", "pid": 7, "since": "2026-01-02T03:04:05+00:00", "url": "u"}],
    "workers": {"arms-cpu": ["worker-cpu"], "arms-gpu": []},
    "runs": [
        {"flow": "train-arms", "name": "full", "state": "Running", "message": None, "since": None, "seconds": 61.0},
        {
            "flow": "train-arms",
            "name": "base",
            "state": "Crashed",
            "message": "no heartbeat\nx",
            "since": None,
            "seconds": 5,
        },
    ],
    "stale": {"changed": {"collect": ["params.yaml: vlms modified", "x modified"]}, "may_run": ["collect", "label"]},
    "new_vlms": ["fresh"],
    "champion": CHAMPION,
    "spent": {
        "vlms": [
            {"endpoint": "e", "model": "m-1", "num_answers": 1200, "spent_usd": 1.5},
            {"endpoint": "e", "model": "m-2", "num_answers": 34, "spent_usd": None},
        ],
        "failed_usd": 0.25,
        "total_usd": 1.75,
    },
    "links": {"report": "report.html"},
    "unknown": {},
}


def _shown(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    show(found)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_screen_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _shown(WELL, capsys)
    assert "Workers arms-cpu: 1 online; arms-gpu: 0 online" in lines
    assert "Runs train-arms/full Running ? 1:01 min" in lines
    assert "train-arms/base Crashed ? 0:05 min no heartbeat" in lines
    assert "Stale collect params.yaml: vlms modified and 1 more" in lines
    assert "after them perhaps: label" in lines
    assert "New VLMs fresh" in lines
    assert "Champion arms-router version 3: incremental, tau 0.25, 2 VLMs" in lines
    assert any(line.endswith("by ann: promoted: better by 0.03") for line in lines)
    assert "Spent $1.7500 for 1,234 kept answers of 2 VLMs, $0.2500 of it for attempts without an answer" in lines
    assert len(lines) < 24  # one screen


@pytest.mark.parametrize("part", ["services", "workers", "runs", "stale", "champion", "spent"])
def test_part_that_is_not_known_hides_no_other(capsys: pytest.CaptureFixture[str], part: str) -> None:
    lines = _shown(WELL | {part: None, "unknown": {part: "it is away"}}, capsys)
    missing = [line for line in lines if "not known: it is away" in line]
    assert len(missing) == (2 if part == "champion" else 1)  # without a champion nobody knows which VLMs are new
    assert len(lines) > 9


def test_screen_of_a_fresh_clone(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"runs": [], "stale": {"changed": {}, "may_run": []}, "new_vlms": [], "champion": None, "links": {}}
    lines = _shown(WELL | nothing, capsys)
    assert "Stale nothing: dvc repro would run no stage" in lines
    assert "New VLMs none that the champion cannot choose" in lines
    assert any(line.startswith("Champion none yet") for line in lines)


def test_new_vlms_are_those_that_the_champion_cannot_choose(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "vlms:\n- {name: old, pool: base}\n- {name: learnt, pool: new}\n- {name: fresh, pool: new}\n"
    )
    assert overview.new_vlms(tmp_path, CHAMPION) == ["fresh"]
    assert overview.new_vlms(tmp_path, None) == ["learnt", "fresh"]


@pytest.mark.parametrize("text", ["vlms: [", "vlms:\n- {name: a}\n", "vlms: 3\n", "queries: {}\n", ""])
def test_params_that_cannot_be_read_are_said_to_be_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(overview.UnknownError, match=r"params\.yaml has no list of VLMs"):
        overview.new_vlms(tmp_path, None)


def test_stale_stages_come_from_dvc(tmp_path: Path) -> None:
    folder = write_mini_tree(tmp_path / "mini")
    found = overview.stale(folder)
    assert set(found["changed"]) >= {"first"}
    assert found["may_run"].index("first") < found["may_run"].index("train")


def test_stages_of_a_broken_dvc_yaml_are_not_known(tmp_path: Path) -> None:
    folder = write_mini_tree(tmp_path / "mini")
    (folder / "dvc.yaml").write_text("stages: [")
    with pytest.raises(overview.UnknownError, match="DVC could not say"):
        overview.stale(folder)


def test_status_works_with_everything_down(make_tree: MakeTree) -> None:
    tree = make_tree()
    result = tree.run("python", "-m", "flows.overview", "--json", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {service["state"] for service in found["services"]} == {"down"}
    assert found["runs"] is None
    assert "runs" in found["unknown"]
    assert found["champion"] is None
    assert "champion" not in found["unknown"]
    assert found["new_vlms"] == ["toy-big", "toy-shape"]
    assert found["spent"]["vlms"] == []
    assert found["spent"]["total_usd"] == 0
    assert "queries" in found["stale"]["changed"]


class Page(http.server.BaseHTTPRequestHandler):
    """Some server that is not Prefect's: it has a page for everything."""

    def do_POST(self) -> None:
        """Answer with a page."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html></html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_server_that_is_not_prefects_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        found = overview.gather(tmp_path)
        server.shutdown()
    assert found["unknown"]["workers"] == f"what answers at {url} is no server of Prefect's; see PREFECT_API_URL"
    assert found["unknown"]["runs"] == found["unknown"]["workers"]
