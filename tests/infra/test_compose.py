"""The compose file: fits the published schema, every name in it leads somewhere, no password stands in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "infra/compose.yaml"
EXAMPLE = ROOT / "infra/compose.env.example"
COMPOSE: dict[str, Any] = YAML(typ="safe").load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# ${NAME:?...} must be set, ${NAME:-...} has a default
VARIABLES = dict(re.findall(r"\$\{(\w+):([?-])", FILE.read_text()))
SETTINGS = dict(line.split("=", 1) for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#"))


def test_file_fits_published_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def compose_command() -> list[str]:
    """Docker's compose, as a plugin or by itself."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    pytest.skip("Docker's compose is not installed")


def test_compose_itself_reads_the_file(tmp_path: Path) -> None:
    words = {name: value or f"word{number}" for number, (name, value) in enumerate(SETTINGS.items())}
    settings = tmp_path / "compose.env"
    settings.write_text("".join(f"{name}={value}\n" for name, value in words.items()))
    command = [*compose_command(), "--env-file", str(settings), "--file", str(FILE), "--profile", "gpu", "config"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert YAML(typ="safe").load(result.stdout)["services"].keys() == SERVICES.keys()


def test_compose_itself_refuses_a_missing_password(tmp_path: Path) -> None:
    (tmp_path / "empty.env").touch()
    command = [*compose_command(), "--env-file", str(tmp_path / "empty.env"), "--file", str(FILE), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "required variable POSTGRES_PASSWORD is missing" in result.stderr


def test_example_names_each_variable_and_leaves_what_must_be_chosen_empty() -> None:
    assert SETTINGS.keys() == VARIABLES.keys()
    assert {name for name, value in SETTINGS.items() if not value} == {
        name for name, kind in VARIABLES.items() if kind == "?"
    }


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_wait_for_what_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"].startswith("on-failure"), f"{name} waits for the end of {other}"


def test_volumes_and_configs_are_declared_and_used() -> None:
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    configs = {config["source"] for service in SERVICES.values() for config in service.get("configs", [])}
    assert volumes == {*COMPOSE["volumes"], ".."}  # the checkout
    assert configs == COMPOSE["configs"].keys()


def test_hosts_in_addresses_are_services() -> None:
    hosts = set(re.findall(r"(?:http://|@)([a-z0-9]+):\d+", FILE.read_text()))
    assert hosts == {"s3", "prefect", "mlflow", "postgres"}
    assert hosts <= SERVICES.keys()


def test_gpu_worker_gets_one_gpu_and_one_run_at_a_time() -> None:
    worker = SERVICES["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert worker["profiles"] == ["gpu"]
    assert worker["command"][worker["command"].index("--limit") + 1] == "1"


def test_workers_do_not_see_the_databases_password() -> None:
    text = str([service for name, service in SERVICES.items() if name.startswith("worker")])
    assert "S3_SECRET_KEY" in text
    assert "POSTGRES_PASSWORD" not in text


def test_workers_in_one_checkout_see_the_same_process_numbers() -> None:
    # else DVC takes the lock of a process in the other container for one of a dead process, and removes it
    workers = [service for service in SERVICES.values() if "..:/arms" in service.get("volumes", [])]
    assert [worker.get("pid") for worker in workers] == ["host", "host"]
