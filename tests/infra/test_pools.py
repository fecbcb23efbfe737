"""Templates of the pools: rendered by the workers' own classes, and what comes out fits what it is given to."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
from docker.models.containers import _create_container_args
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "infra/pools").glob("*.json"))
KUBERNETES = ("1.30", "1.37")  # the oldest that we mean to fit, and the newest that is published
CLASSES: dict[str, type[BaseJobConfiguration]] = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
}


def template(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"infra/pools/{name}.json").read_text())
    return found


def rendered(name: str, **variables: Any) -> Any:
    """What a worker makes of a template for one run, with a deployment's own job variables."""
    nobody = PrefectClient("http://127.0.0.1:9/api")  # asked for blocks only, and these templates name none
    kind = CLASSES[name.split("-")[0]]
    configuration = asyncio.run(kind.from_template_and_values(template(name), variables, client=nobody))
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="quiet-otter"))
    return configuration


def job(name: str, **variables: Any) -> dict[str, Any]:
    """The Job that the Kubernetes worker would create."""
    manifest: dict[str, Any] = rendered(name, **variables).job_manifest
    # Prefect's worker insists on these two where Kubernetes does not know them, and drops; a Job has 1 of both anyway
    for key in ("completions", "parallelism"):
        assert manifest["spec"]["template"]["spec"].pop(key) == 1
    return manifest


def pod(name: str, **variables: Any) -> dict[str, Any]:
    found: dict[str, Any] = job(name, **variables)["spec"]["template"]["spec"]
    return found


def test_each_type_of_pool_has_templates() -> None:
    assert NAMES == ["docker-cpu", "docker-gpu", "kubernetes-cpu", "kubernetes-gpu", "process"]


@pytest.mark.parametrize("name", NAMES)
def test_template_uses_each_variable_that_it_declares_and_no_other(name: str) -> None:
    # Prefect takes a variable that no placeholder names without a word, and it then does nothing
    found = template(name)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(found["job_configuration"])))
    assert used == found["variables"]["properties"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_runs_send_heartbeats_as_often_as_the_automation_for_silent_ones_expects(name: str) -> None:
    own = rendered(name, env={"OWN": "1"}).env
    assert own["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"  # a deployment's own variables come on top
    assert own["OWN"] == "1"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "process"])
def test_containers_do_not_take_over_the_workers_folder_for_prefect(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))  # the worker hands on all its settings of Prefect
    assert rendered(name).env["PREFECT_HOME"] == "/tmp/prefect"  # noqa: S108


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", ["kubernetes-cpu", "kubernetes-gpu"])
def test_job_fits_published_schema(name: str, version: str) -> None:
    assert kubernetes_validate.validate(job(name), version, strict=True) == version


def test_schema_refuses_what_does_not_fit() -> None:
    spoilt = job("kubernetes-gpu")
    spoilt["spec"]["template"]["spec"]["tolerations"] = [{"keys": "nvidia.com/gpu"}]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, KUBERNETES[-1], strict=True)


def test_gpu_job_asks_for_a_gpu_and_goes_to_nodes_kept_for_them() -> None:
    found = pod("kubernetes-gpu", node_selector={"pool": "a100"}, memory_limit="48Gi")
    assert found["containers"][0]["resources"]["limits"] == {"memory": "48Gi", "nvidia.com/gpu": 1}
    assert found["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert found["nodeSelector"] == {"pool": "a100"}


def test_cpu_job_asks_for_no_gpu() -> None:
    found = pod("kubernetes-cpu")
    assert "nvidia" not in json.dumps(found)
    assert found["tolerations"] == []


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_job_keeps_store_and_cache_beyond_the_pod(pool: str) -> None:
    found = pod(f"kubernetes-{pool}")
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in found["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in found["containers"][0]["volumeMounts"]}
    assert claims == {"store": f"arms-{pool}-store", "cache": f"arms-{pool}-cache"}
    assert (mounts["store"], mounts["cache"]) == ("/arms/.arms", "/arms/.dvc/cache")
    assert mounts.keys() == {volume["name"] for volume in found["volumes"]}


def test_job_reads_secrets_by_reference_and_may_not_speak_to_kubernetes() -> None:
    found = pod("kubernetes-cpu")
    assert {"secretRef": {"name": "arms-run"}} in found["containers"][0]["envFrom"]
    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False  # else the Service mlflow would set MLFLOW_PORT=tcp://...
    assert found["securityContext"]["runAsNonRoot"] is True


def container(name: str, **variables: Any) -> dict[str, Any]:
    """What the Docker client would send to its daemon."""
    found = rendered(name, **variables)
    words = {"image": found.image, "version": "1.44", "mem_limit": found.mem_limit, "volumes": found.volumes}
    body: dict[str, Any] = _create_container_args(words | found.container_create_kwargs)["host_config"]
    return body


def test_gpu_container_gets_one_gpu() -> None:
    (request,) = container("docker-gpu")["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])


def test_cpu_container_gets_none() -> None:
    assert "DeviceRequests" not in container("docker-cpu")


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_container_keeps_store_and_cache_in_volumes(pool: str) -> None:
    binds = [f"arms-{pool}-store:/arms/.arms", f"arms-{pool}-cache:/arms/.dvc/cache", "/etc/dvc:/etc/dvc:ro"]
    assert container(f"docker-{pool}")["Binds"] == binds
