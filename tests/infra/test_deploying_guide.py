"""docs/deploying.md: it names every file under infra/ with what was and was not run, and nothing that is not there."""

import re
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/deploying.md").read_text()
MADE_BY_PEOPLE = {"infra/compose.env", "infra/endpoints.env"}


def test_guide_names_only_files_that_are_there() -> None:
    named = (
        set(re.findall(r"(?:infra|docs|tests)/[\w./-]*\w", GUIDE)) - MADE_BY_PEOPLE - {"infra/kubernetes/secrets.yaml"}
    )
    assert not {name for name in named if not (ROOT / name).exists()}


def test_guide_says_of_each_file_what_was_run() -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", "infra"]
    files = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    table = GUIDE.split("## What was run, and what was not")[1]
    assert not [name for name in files if not name.startswith("infra/ci/") and f"`{name}`" not in table]


def test_guide_names_only_deployments_that_are_there() -> None:
    found = YAML(typ="safe").load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    known = {f"{deployment['entrypoint'].split(':')[1].replace('_', '-')}/{deployment['name']}" for deployment in found}
    named = set(re.findall(r"\btrain-arms/[\w-]+", GUIDE))
    assert named
    assert named <= known


def test_variables_of_the_guide_are_those_of_the_templates() -> None:
    template = (ROOT / "infra/pools/kubernetes-gpu.json").read_text()
    named = set(re.findall(r"--job-variable (\w+)=", GUIDE)) | {"memory_request", "memory_limit"}
    assert all(f'"{{{{ {name} }}}}"' in template for name in named)
