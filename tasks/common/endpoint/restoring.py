"""The answer store rebuilt from sealed tables; an empty one is refused where answers were sealed before."""

import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from arms_model.errors import ConfigError
from tasks.common.endpoint.answers import STORE, Answer, AnswerStore
from tasks.common.vlms import Vlm

LOCK = Path("dvc.lock")
_KEPT = ("output", "finish_reason", "request_id", "latency_s", "prompt_tokens", "completion_tokens", "cost_usd")


def restore(sealed: pl.DataFrame, *, vlms: Sequence[Vlm], store: AnswerStore) -> tuple[int, int]:
    """Put sealed answers into the store, and what failed attempts beside them cost.

    Args:
        sealed: table `collect`.
        vlms: their blocks say which endpoint and model an answer is of; without its block, the key alone says all.
        store: takes what it does not have.

    Returns:
        How many answers were put in, and how many were there.
    """
    endpoints = {vlm.name: (vlm.endpoint.name, vlm.endpoint.model) for vlm in vlms if vlm.endpoint is not None}
    rows = sealed.filter(pl.col("answer_key").is_not_null()).unique("answer_key", keep="first", maintain_order=True)
    keys = rows["answer_key"].to_list()
    known, tried = {key for key, _ in store.served_models(keys)}, set(store.attempts(keys))
    answers = []
    for row in rows.filter(~pl.col("answer_key").is_in(known)).iter_rows(named=True):
        endpoint, model = endpoints.get(row["vlm"], ("", ""))
        columns = {name: row[name] for name in _KEPT}
        if row["output"] is not None:
            answers.append(
                Answer(
                    key=row["answer_key"], endpoint=endpoint, model=model, served_model="", answered_at=time.time(),
                    **columns,
                )
            )  # fmt: skip
        beside = (row["spent_usd"] or 0.0) - (row["cost_usd"] or 0.0)
        if row["answer_key"] not in tried and (beside > 1e-12 or row["error"] is not None):
            cost = None if row["spent_usd"] is None else beside
            store.add_attempt(row["answer_key"], reason=row["error"] or "before the store was restored", cost_usd=cost)
    store.begin({endpoint for endpoint, _ in endpoints.values()})
    num_answers = rows["output"].count()
    return store.add_all(answers), num_answers - len(answers)


def refuse_new_store_beside_sealed_answers(vlms: Sequence[Vlm], store: AnswerStore, *, served_here: set[str]) -> None:
    """Raise ConfigError where answers of an endpoint were sealed in this tree, and the store knows nothing of it.

    That is how a fresh clone looks: DVC removes the sealed tables before it runs the stage, so all would be asked, and
    paid, again.

    Args:
        vlms: the VLMs of params.
        store: the answer store.
        served_here: endpoints whose servers the stage starts itself: asking them again costs time only.
    """
    wanted = {vlm.endpoint.name for vlm in vlms if vlm.endpoint is not None} - served_here
    if lost := (wanted & _sealed_endpoints()) - store.begun():
        raise ConfigError(
            f"{LOCK} knows sealed answers of {', '.join(sorted(lost))}, but the answer store {STORE} has none, so all "
            "would be asked again. Restore it: `dvc fetch collect` (where there is a remote), `dvc checkout collect`, "
            "`python -m tasks.collect --restore`. To ask all again: `python -m tasks.collect --new-store`."
        )


def _sealed_endpoints() -> set[str]:
    """The endpoints' names that the last sealed tables were asked of, by the params that DVC noted."""
    if not LOCK.exists():
        return set()
    try:
        noted = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{LOCK} is no valid YAML ({error}); resolve the conflict in it, or restore it.") from None
    for name in ("stages", "collect", "params", "params.yaml"):
        noted = noted.get(name) if isinstance(noted, dict) else None
    if not isinstance(noted, dict) or (noted.get("collect") or {}).get("source") != "endpoint":
        return set()
    endpoints = (block.get("endpoint") or {} for block in noted.get("vlms") or [])
    return {str(endpoint["name"]) for endpoint in endpoints if "name" in endpoint}
