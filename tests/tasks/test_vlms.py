from typing import Any

import pytest

from arms_model.errors import ConfigError
from tasks.common.vlms import parse_vlms


def _block(**fields: Any) -> dict[str, Any]:
    return {"name": "toy-a", "display_name": "Toy A", "provider": "Toy Lab", "pool": "base"} | fields


def _endpoint(**settings: Any) -> dict[str, Any]:
    return {"name": "lab", "base_url": "http://127.0.0.1:8000/v1", "model": "m"} | settings


def test_vlms_come_sorted_by_name_whatever_their_order() -> None:
    blocks = [_block(name="c"), _block(name="a", pool="new"), _block(name="b")]
    assert [vlm.name for vlm in parse_vlms(blocks)] == ["a", "b", "c"]
    assert parse_vlms(blocks) == parse_vlms(blocks[::-1])


def test_empty_new_pool_is_fine() -> None:
    assert [vlm.pool for vlm in parse_vlms([_block()])] == ["base"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([_block(), _block(name="b", poool="base")], r"vlms\[1\]\.poool: unknown key; did you mean 'pool'\?"),
        ([_block(), _block()], r"vlms: named twice: toy-a; .* remove or rename"),
        ([_block(pool="new")], r"none of the 1 VLMs is in pool 'base'.*write 'pool: base'"),
        ([], r"none of the 0 VLMs is in pool 'base'"),
        ([_block(pool="bse")], r"vlms\[0\]\.pool: Input should be 'base' or 'new', got 'bse'"),
        ([{"name": "a"}], r"vlms\[0\]\.display_name: missing"),
        ([_block(params_b="big")], r"vlms\[0\]\.params_b: .*got 'big'"),
        ([_block(params_b=-1)], r"vlms\[0\].*params_b may not be negative"),
        ([_block(sample=0)], r"vlms\[0\].*sample must be 1 or more, not 0"),
        ([_block(released="2024-13")], r"vlms\[0\].*'YYYY-MM', not '2024-13'"),
        ([_block(name=" ")], r"vlms\[0\].*may not be empty"),
        ([_block(endpoint=_endpoint(modell="m"))], r"vlms\[0\]\.endpoint\.modell: unknown key; did you mean 'model'\?"),
        ([_block(endpoint={"name": "lab", "model": "m"})], r"vlms\[0\]\.endpoint\.base_url: missing"),
        ([_block(endpoint=_endpoint(base_url="ftp://host/v1"))], r"base_url must be like https://host/v1"),
        ([_block(endpoint=_endpoint(base_url="https://me:secret@host/v1"))], r"may not carry a key"),
        ([_block(endpoint=_endpoint(base_url="http://127.0.0.1:99999/v1"))], r"[Pp]ort"),
        ([_block(endpoint=_endpoint(base_url="http://127.0.0.1:abc/v1"))], r"[Pp]ort"),
        ([_block(endpoint=_endpoint(prompt="Look!"))], r"prompt must name \{question\}"),
        ([_block(endpoint=_endpoint(prompt="{question} {answer}"))], r"nothing but question, options, language"),
        ([_block(endpoint=_endpoint(generation={"messages": []}))], r"generation may not set messages"),
        *(
            ([_block(endpoint=_endpoint(generation={"extra_body": {name: 9}}))], r"extra_body must .*none of max_")
            for name in ("max_tokens", "max_completion_tokens", "n", "stream", "model", "messages")
        ),
        ([_block(endpoint=_endpoint(generation={"n": 4}))], r"generation may not set n"),
        ([_block(endpoint=_endpoint(generation={"max_tokens": -1}))], r"max_tokens must be .* 1 or more, not -1"),
        ([_block(endpoint=_endpoint(generation={"max_completion_tokens": 0}))], r"must be .* 1 or more, not 0"),
        ([_block(endpoint=_endpoint(generation={"max_tokens": 1.5}))], r"must be a whole number .* not 1\.5"),
        ([_block(endpoint=_endpoint(concurrency=0))], r"concurrency must be more than 0, not 0"),
        ([_block(endpoint=_endpoint(retries=-1))], r"retries may not be negative, not -1"),
        ([_block(usd_per_call=-0.1)], r"usd_per_call may not be negative"),
        ([_block(usd_per_mtok_in=float("nan"))], r"usd_per_mtok_in must be a number, not nan"),
        ([_block(usd_per_mtok_out=float("inf"))], r"usd_per_mtok_out must be a number, not inf"),
        (
            [_block(usd_per_call=1, endpoint=_endpoint(budget_usd=float("nan")))],
            r"budget_usd must be a number, not nan",
        ),
        ([_block(sample_from="answered_by_base")], r"answered_by_base is for VLMs of pool new"),
        ({"toy-a": {}}, r"vlms: expected a list of VLM blocks.*got dict"),
        (["toy-a"], r"vlms\[0\]: expected a mapping of settings, got str"),
        (None, r"vlms: expected a list of VLM blocks.*got NoneType"),
    ],
)
def test_vlm_blocks_are_refused_with_what_to_do(blocks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_vlms(blocks)


def test_message_about_a_url_with_a_key_does_not_repeat_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_vlms([_block(endpoint=_endpoint(base_url="https://me:hunter2hunter2@host/v1"))])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("variable", ["sk-proj-hunter2hunter2", "toy_key", "2_KEY", "MY KEY", "KEY\n"])
def test_key_in_the_place_of_its_variable_is_refused_and_not_repeated(variable: str) -> None:
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        parse_vlms([_block(endpoint=_endpoint(api_key_variable=variable))])
    assert variable not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "served", "is_taken"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b-instruct", True),
        ("gemini-1.5-flash", "models/gemini-1.5-flash-002", True),
        ("claude-3-5-sonnet", "claude-3-5-sonnet@20240620", True),
        ("llama", "llama:latest", True),
        ("pixtral", "pixtral-v1.2", True),
        ("llava-v1.6", "llava-v1.6-34b", False),
        ("llava", "llava:34b", False),
        ("claude-3", "claude-3-5-sonnet", False),
        ("qwen2.5-vl", "qwen2.5-vl-72b-instruct", False),
        ("m", "fallback", True),  # served_as
        ("m", "other", False),
    ],
)
def test_reply_counts_for_the_asked_model_its_versions_and_served_as(asked: str, served: str, is_taken: bool) -> None:
    endpoint = parse_vlms([_block(endpoint=_endpoint(model=asked, served_as=["fallback"]))])[0].endpoint
    assert endpoint is not None
    assert endpoint.is_answered_by(served) is is_taken
