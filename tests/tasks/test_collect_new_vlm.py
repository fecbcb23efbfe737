"""A VLM's block is added to params: the endpoint's own counters show whom `dvc repro` asks, hashes what it touches.

The endpoint is the sandbox's, with programs made up here.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image

from sandbox.endpoint import make_app
from tests.sandbox.serving import serving
from tests.tasks.asking import vlm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeTree

UNTOUCHED = ("profiles/base.parquet", "collect/base.parquet", "label/base.parquet", "models/train_base")


def name_the_colour(picture: bytes, question: str) -> str:
    """Right about colours; has one answer for each other question."""
    with Image.open(io.BytesIO(picture)) as opened:
        colours = opened.convert("RGB").resize((1, 1), box=(3, 12, 10, 28)).getpixel((0, 0))
    return "2" if "many" in question else "Yes" if "even" in question else "ABC"[max(range(3), key=colours.__getitem__)]


def always_say_no(picture: bytes, question: str) -> str:
    """Right about some verdicts only."""
    return "No"


PROGRAMS = {"colour": name_the_colour, "no": always_say_no, "late": name_the_colour}


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The sandbox's endpoint in a thread."""
    with serving(make_app(PROGRAMS, dict.fromkeys(PROGRAMS, 0.0))) as url:
        yield url


def test_added_block_asks_that_vlm_only_and_leaves_the_base_router_byte_for_byte(
    make_tree: MakeTree, endpoint: str
) -> None:
    def block(name: str, **more: Any) -> dict[str, Any]:
        return vlm(name, f"{endpoint}/v1", **more)

    tree = make_tree(vlms=[block("colour"), block("no")], collect={"source": "endpoint", "max_error_share": 0.0})
    ran = tree.repro("label", "train_base")
    assert set(ran) == {"queries", "profiles", "collect", "label", "split", "embed", "train_base"}
    assert httpx2.get(f"{endpoint}/sandbox/counters").json() == {"colour": 90, "no": 90, "late": 0}
    before = [tree.sha256(path) for path in UNTOUCHED]
    httpx2.delete(f"{endpoint}/sandbox/counters")

    params = tree.params()
    params["vlms"].insert(0, block("late", pool="new", sample=40))
    tree.write_params(params)
    assert set(tree.repro("label", "train_base")) == {"profiles", "collect", "label"}
    assert httpx2.get(f"{endpoint}/sandbox/counters").json() == {"colour": 0, "no": 0, "late": 40}
    assert [tree.sha256(path) for path in UNTOUCHED] == before
    assert tree.table("label/new").height == 40
    assert tree.table("label/new")["correct"].any()
    assert tree.repro("label", "train_base") == []
