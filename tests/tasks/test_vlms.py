from typing import Any

import pytest

from arms_model.errors import ConfigError
from tasks.common.vlms import parse_vlms


def _block(**fields: Any) -> dict[str, Any]:
    return {"name": "toy-a", "display_name": "Toy A", "provider": "Toy Lab", "pool": "base"} | fields


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
        ({"toy-a": {}}, r"vlms: expected a list of VLM blocks.*got dict"),
        (["toy-a"], r"vlms\[0\]: expected a mapping of settings, got str"),
        (None, r"vlms: expected a list of VLM blocks.*got NoneType"),
    ],
)
def test_vlm_blocks_are_refused_with_what_to_do(blocks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_vlms(blocks)
