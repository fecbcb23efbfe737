"""Kubernetes manifests: rendered offline, checked against published schemas, and every name in them leads somewhere."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra/kubernetes"
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """What `kubectl apply -k infra/kubernetes` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(FOLDER)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return list(YAML(typ="safe").load_all(text))


@pytest.fixture(scope="module")
def secrets() -> list[Manifest]:
    """What a person makes beforehand."""
    return list(YAML(typ="safe").load_all((FOLDER / "secrets.example.yaml").read_text()))


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in manifests if found["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {name: found["spec"]["template"]["spec"] for name, found in named(manifests, "Deployment").items()}


def entries(value: object, key: str) -> Iterator[Any]:
    """All values under `key`, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from entries(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from entries(inner, key)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_manifests_fit_published_schemas(manifests: list[Manifest], secrets: list[Manifest], version: str) -> None:
    for manifest in [*manifests, *secrets]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_all_of_it_is_in_one_namespace(manifests: list[Manifest]) -> None:
    assert list(named(manifests, "Namespace")) == ["arms"]
    assert {found["metadata"].get("namespace") for found in manifests if found["kind"] != "Namespace"} == {"arms"}


def test_names_that_pods_and_runs_use_exist(manifests: list[Manifest], secrets: list[Manifest]) -> None:
    used: list[object] = [pods(manifests)]
    for pool in ("cpu", "gpu"):
        template = json.loads((ROOT / f"infra/pools/kubernetes-{pool}.json").read_text())
        defaults = {name: found.get("default") for name, found in template["variables"]["properties"].items()}
        text = json.dumps(template["job_configuration"]["job_manifest"])
        for name, default in defaults.items():
            text = text.replace(f"{{{{ {name} }}}}", str(default))
        used.append(json.loads(text))
    config_maps = {
        found["name"] for key in ("configMapRef", "configMap", "configMapKeyRef") for found in entries(used, key)
    }
    secret_names = {found["name"] for key in ("secretRef", "secretKeyRef") for found in entries(used, key)}
    assert config_maps == named(manifests, "ConfigMap").keys()
    assert secret_names == named(secrets, "Secret").keys()
    claims = {found["claimName"] for found in entries(used, "persistentVolumeClaim")}
    assert claims == named(manifests, "PersistentVolumeClaim").keys()
    assert set(entries(used, "serviceAccountName")) == named(manifests, "ServiceAccount").keys()


def test_keys_of_secrets_that_servers_read_exist(manifests: list[Manifest], secrets: list[Manifest]) -> None:
    known = {(name, key) for name, found in named(secrets, "Secret").items() for key in found["stringData"]}
    asked = {(found["name"], found["key"]) for found in entries(pods(manifests), "secretKeyRef")}
    assert asked <= known
    assert "arms-servers" in {name for name, _ in asked}


def test_example_of_secrets_holds_no_value(secrets: list[Manifest]) -> None:
    assert {value for found in secrets for value in found["stringData"].values()} == {""}


def test_services_lead_to_pods(manifests: list[Manifest]) -> None:
    labels = {
        name: found["spec"]["template"]["metadata"]["labels"] for name, found in named(manifests, "Deployment").items()
    }
    for name, service in named(manifests, "Service").items():
        assert service["spec"]["selector"].items() <= labels[name].items()
        ports = {port["name"] for found in pods(manifests)[name]["containers"] for port in found["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_addresses_name_services(manifests: list[Manifest]) -> None:
    services = {f"{name}:{found['spec']['ports'][0]['port']}" for name, found in named(manifests, "Service").items()}
    settings = named(manifests, "ConfigMap")["arms-settings"]["data"]
    variables = [found for found in entries(pods(manifests), "env") for found in found]
    api = {found["value"] for found in variables if found["name"] == "PREFECT_API_URL"}
    assert api == {"http://prefect:4200/api"}
    assert settings["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert services == {"prefect:4200", "mlflow:5000"}


def test_pods_get_no_variables_of_services(manifests: list[Manifest]) -> None:
    # of the Service mlflow Kubernetes would make MLFLOW_PORT=tcp://..., which MLflow's server takes for its own port
    assert {name: found["enableServiceLinks"] for name, found in pods(manifests).items()} == dict.fromkeys(
        ["mlflow", "prefect", "worker-cpu", "worker-gpu"], False
    )


def test_only_workers_may_speak_to_kubernetes_and_only_of_jobs(manifests: list[Manifest]) -> None:
    speaking = {name for name, found in pods(manifests).items() if found.get("automountServiceAccountToken", True)}
    assert speaking == {"worker-cpu", "worker-gpu"}
    assert named(manifests, "ServiceAccount")["arms-run"]["automountServiceAccountToken"] is False
    (binding,) = named(manifests, "RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == ["arms-worker"]
    writable = {
        resource
        for rule in named(manifests, "Role")[binding["roleRef"]["name"]]["rules"]
        for resource in rule["resources"]
        if not set(rule["verbs"]) <= {"get", "list", "watch"}
    }
    assert writable == {"jobs"}
    assert not named(manifests, "ClusterRole")


def test_pods_fit_the_restricted_policy_of_their_namespace(manifests: list[Manifest]) -> None:
    policy = named(manifests, "Namespace")["arms"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert policy == "restricted"
    runs = [json.loads((ROOT / f"infra/pools/kubernetes-{pool}.json").read_text()) for pool in ("cpu", "gpu")]
    jobs = [run["job_configuration"]["job_manifest"]["spec"]["template"]["spec"] for run in runs]
    for pod in [*pods(manifests).values(), *jobs]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        kinds = {key for volume in pod.get("volumes", []) for key in volume if key != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def test_workers_run_the_version_of_prefect_that_is_locked(manifests: list[Manifest]) -> None:
    images = {pods(manifests)[f"worker-{pool}"]["containers"][0]["image"] for pool in ("cpu", "gpu")}
    assert images == {f"prefecthq/prefect:{prefect.__version__}-python3.11-kubernetes"}


def test_workers_take_the_pools_that_deployments_name(manifests: list[Manifest]) -> None:
    deployments = YAML(typ="safe").load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    words = [found["containers"][0]["args"] for name, found in pods(manifests).items() if name.startswith("worker")]
    assert {args[args.index("--pool") + 1] for args in words} == {found["work_pool"]["name"] for found in deployments}
