"""`params.yaml`, read one section at a time: a stage sees its own section and `base`, nothing else.

So a stage's DVC dependencies stay true: changing another section cannot change what it does.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from arms_model.errors import ConfigError
from arms_model.settings import nearest, parse

PARAMS = Path("params.yaml")
STAGES = (
    "queries", "profiles", "collect", "label", "split", "embed",
    "train_base", "train_incremental", "train_independent", "cascade_eval", "report", "register",
)  # fmt: skip
SECTIONS = ("base", "vlms", "tracking", "gates", *STAGES)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """Section `base`: what all stages share."""

    seed: int


def load_section(name: str, settings_class: type[T]) -> T:
    """Section `name` of `params.yaml` as `settings_class`.

    Raises:
        ConfigError: no file, no YAML, an unknown section or key (named by its path), a missing or mistyped value.
    """
    return parse(settings_class, raw_section(name), name)


@dataclass(frozen=True, kw_only=True)
class NoBounds:
    """A subsection of `gates` with nothing to set; a key there is refused."""


def load_gate(stage: str, settings_class: type[T]) -> T:
    """Subsection `gates.<stage>` of `params.yaml`; a stage reads nothing else of `gates`.

    Raises:
        ConfigError: as `load_section`.
    """
    gates = raw_section("gates")
    if not isinstance(gates, dict) or stage not in gates:
        raise ConfigError(f"gates.{stage}: missing; write `{stage}: {{}}` under `gates`.")
    return parse(settings_class, gates[stage], f"gates.{stage}")


def load_seed() -> int:
    """`base.seed`."""
    return load_section("base", BaseSettings).seed


def load_group_by() -> Literal["image_group", "template"]:
    """`split.group_by`: what near-copies share, for the train stages' inner folds and for the bootstrap.

    Raises:
        ConfigError: it is missing or unknown.
    """
    group_by = raw_section("split").get("group_by")
    if group_by not in ("image_group", "template"):
        raise ConfigError(f"split.group_by: expected image_group or template, got {group_by!r}.")
    return cast(Literal["image_group", "template"], group_by)


def raw_section(name: str) -> Any:
    """Section `name` as YAML gives it."""
    params = _read(PARAMS.absolute())
    for key in params:
        if key not in SECTIONS:
            raise ConfigError(f"{PARAMS}: {key}: unknown section; {nearest(str(key), SECTIONS)}")
    if name not in params:
        raise ConfigError(f"{PARAMS}: section '{name}' is missing.")
    return params[name]


@cache
def _read(path: Path) -> dict[str, Any]:
    try:
        params = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no {PARAMS} in {path.parent}; run from the checkout's top folder or from a workspace."
        ) from None
    except YAMLError as error:
        raise ConfigError(f"{PARAMS} is no valid YAML: {error}") from None
    if not isinstance(params, dict):
        raise ConfigError(f"{PARAMS}: expected sections ({', '.join(SECTIONS)}), got {type(params).__name__}.")
    return params
