"""The example of docs/collecting.md can be pasted into params.yaml as it stands."""

import re
from pathlib import Path

from ruamel.yaml import YAML

from arms_model.settings import parse
from tasks.collect import CollectSettings
from tasks.common.endpoint.collection import (
    refuse_servers_of_nobody,
    refuse_unpriced_budgets,
    refuse_without_endpoints,
)
from tasks.common.vlms import parse_vlms

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/collecting.md"


def test_example_is_taken_by_collect() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    examples = [example for example in (YAML(typ="safe").load(block) for block in blocks) if "vlms" in example]
    assert len(examples) == 1
    settings = parse(CollectSettings, examples[0]["collect"], "collect")
    vlms = parse_vlms(examples[0]["vlms"])
    assert settings.source == "endpoint"
    assert settings.budget_usd is not None  # else no price is needed
    refuse_without_endpoints(vlms)
    refuse_unpriced_budgets(vlms, settings.limits)
    refuse_servers_of_nobody(vlms, settings.limits)
