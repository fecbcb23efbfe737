"""Sample cards (Fig. 2): a picture with its question, what every VLM answered, and whom the router chose.

Right choices, and wrong ones where another VLM was right: those the router could have avoided. Which are shown depends
on the seed and the query's name alone, and goes round the benchmarks. Pictures are scaled down and written anew, so
nothing of the files' metadata comes along.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from arms_model.metrics import oracle_outcomes, outcomes
from arms_model.pictures import open_picture
from tasks.common.report.frames import picked_choice
from tasks.common.report.inputs import Inputs

IMAGES = Path("queries/images")
SPLIT = "test_id"
_MAX_SIDE, _QUALITY = 320, 70
_LONGEST_QUESTION, _LONGEST_ANSWER = 1200, 240
_FIRST_ANSWERS = 8  # of the most confident; the others are folded away
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a VLM answered.

    Attributes:
        vlm: display name.
        output: as it came, shortened; None where the source keeps only right or wrong.
        predicted: what the label compares.
        is_right: the label that is scored.
        confidence: the router's; None where the router that knows this VLM was not run.
        is_chosen: whether the router chose it.
    """

    vlm: str
    output: str | None
    predicted: str | None
    is_right: bool
    confidence: float | None
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """A query with its answers.

    Attributes:
        query: the row of table `queries`; texts cleaned and shortened.
        picture: data URI.
        width: px of the picture as shown.
        height: likewise.
        answers: the most confident first.
        num_first: how many of them are shown at once.
        is_new_run: whether the second router of a cascade was run; None for one router.
    """

    query: dict[str, Any]
    picture: str
    width: int
    height: int
    answers: list[Answer]
    num_first: int
    is_new_run: bool | None


@dataclass(frozen=True, kw_only=True)
class Cards:
    """The cards, and how often choices are what on all queries of the split.

    Attributes:
        right: right choices.
        wrong: wrong choices where another VLM was right.
        num_right: of all queries.
        num_avoidable: wrong, another VLM was right.
        num_hopeless: wrong, no VLM was right.
    """

    right: list[Card]
    wrong: list[Card]
    num_right: int
    num_avoidable: int
    num_hopeless: int


def sample_cards(inputs: Inputs, *, number: int, seed: int) -> Cards:
    """Choose and make the cards of split test_id.

    Args:
        inputs: what the stages left.
        number: of right choices, and as many of wrong ones.
        seed: another one shows other queries.

    Raises:
        DataError: a picture is missing or damaged.
    """
    rows = inputs.rows_of(SPLIT)
    scored, choice = inputs.scored[rows], picked_choice(inputs, rows)
    right = outcomes(scored, choice.column) == 1
    answerable = oracle_outcomes(scored, ~np.isnan(scored)) == 1
    chosen = choice.column >= 0  # a query of new VLMs alone has no choice where no router learnt them
    is_cascade = inputs.picked.strategy.tau is not None

    def made(group: NDArray[np.bool_]) -> list[Card]:
        cards = []
        for place in _drawn(inputs, rows, group, number=number, seed=seed):
            is_new_run = bool(choice.is_new_run[place]) if is_cascade else None
            confidences = np.array(choice.confidences[place], dtype=np.float64)
            if is_new_run is False:
                confidences[~inputs.is_base] = np.nan
            cards.append(_card(inputs, int(rows[place]), int(choice.column[place]), confidences, is_new_run))
        return cards

    avoidable = chosen & ~right & answerable
    return Cards(
        right=made(chosen & right),
        wrong=made(avoidable),
        num_right=int((chosen & right).sum()),
        num_avoidable=int(avoidable.sum()),
        num_hopeless=int((chosen & ~right & ~answerable).sum()),
    )


def _drawn(
    inputs: Inputs, rows: NDArray[np.int64], group: NDArray[np.bool_], *, number: int, seed: int
) -> Iterable[int]:
    """Places in `rows` of the queries to show: by hash, one of each benchmark in turn."""
    queries = inputs.queries[rows].select("query_id", "benchmark").with_columns(place=pl.int_range(pl.len()))
    drawn = queries.filter(pl.Series(group, dtype=pl.Boolean)).to_dicts()
    drawn.sort(key=lambda row: hashlib.sha256(f"{seed} {row['query_id']}".encode()).digest())
    turn: dict[str, int] = {}
    for row in drawn:
        row["turn"] = turn[row["benchmark"]] = turn.get(row["benchmark"], -1) + 1
    drawn.sort(key=lambda row: (row["turn"], row["benchmark"]))
    return [row["place"] for row in drawn[:number]]


def _card(inputs: Inputs, row: int, column: int, confidences: NDArray[np.float64], is_new_run: bool | None) -> Card:
    query = inputs.queries.row(row, named=True)
    given = inputs.answers.filter(pl.col("query_id") == query["query_id"])
    answers = []
    for answer in given.iter_rows(named=True):
        place = inputs.names.index(answer["vlm"])
        confidence = float(confidences[place])
        answers.append(
            Answer(
                vlm=inputs.display_names[answer["vlm"]],
                output=None if answer["output"] is None else clean(answer["output"], _LONGEST_ANSWER),
                predicted=None if answer["predicted"] is None else clean(answer["predicted"], _LONGEST_ANSWER),
                is_right=bool(answer["correct"]),
                confidence=None if np.isnan(confidence) else confidence,
                is_chosen=place == column,
            )
        )
    answers.sort(key=lambda a: (not a.is_chosen, -1.0 if a.confidence is None else -a.confidence - 1, a.vlm))
    picture, size = small_picture(IMAGES / query["image"])
    query["question"] = clean(query["question"], _LONGEST_QUESTION)
    query["answer"] = clean(query["answer"], _LONGEST_ANSWER)
    query["choices"] = [clean(choice, _LONGEST_ANSWER) for choice in query["choices"] or []]
    num_first = len(answers) if len(answers) <= _FIRST_ANSWERS + 2 else _FIRST_ANSWERS
    return Card(
        query=query, picture=picture, width=size[0], height=size[1], answers=answers, num_first=num_first,
        is_new_run=is_new_run,
    )  # fmt: skip


def clean(text: str, longest: int) -> str:
    """Text without control characters, cut where it is too long."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.strip())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def small_picture(path: Path) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, its longer side at most 320 px, and its size.

    Raises:
        DataError: it is missing or damaged.
    """
    picture = open_picture(path)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", picture.size
