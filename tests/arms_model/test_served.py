"""What is served: the folder round trip, answers against the routers' own confidences, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arms_model.answering import ServedRouter
from arms_model.errors import ArmsError, ConfigError, DataError, StorageError
from arms_model.served import load_served, save_retired, save_served
from arms_model.storage import load_router
from tests.arms_model.toys import (
    CHOICES,
    pictures,
    questions,
    save_toy_base,
    save_toy_cascade,
    save_toy_router,
    trained,
    vectors,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A served cascade; never write into it."""
    folder = tmp_path_factory.mktemp("served") / "served"
    save_toy_cascade(folder)
    return folder


@pytest.fixture(scope="module")
def cascade(folder: Path) -> ServedRouter:
    return load_served(folder)


def every(served: ServedRouter) -> np.ndarray:
    return served.confidences([vectors()] * len(served.routers))


def test_folder_holds_the_routers_byte_for_byte_and_nothing_else(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        "base/config.json",
        "base/weights.safetensors",
        "new/config.json",
        "new/weights.safetensors",
        "served.json",
    ]
    for role, source in (("base", trained().base), ("new", trained().independent)):
        for name in ("config.json", "weights.safetensors"):
            assert (folder / role / name).read_bytes() == (source / name).read_bytes()


def test_same_routers_give_the_same_digest_and_another_tau_another(folder: Path, tmp_path: Path) -> None:
    digest = load_served(folder).digest
    assert save_toy_cascade(tmp_path / "again") == digest
    assert save_toy_cascade(tmp_path / "other", tau=0.7) != digest


def test_selection_space_is_that_of_both_routers(cascade: ServedRouter) -> None:
    assert cascade.vlms == ("a", "b", "c", "d")
    assert cascade.is_base.tolist() == [True, False, True, False]


def test_answers_carry_the_confidences_of_the_router_that_scores_each_vlm(cascade: ServedRouter) -> None:
    answers = cascade.answer(questions(), pictures(), choices=CHOICES)
    base, new = load_router(trained().base), load_router(trained().independent)
    expected = {
        **dict(zip(base.config.vlms, base.confidences(*vectors()).T, strict=True)),
        **dict(zip(new.config.vlms, new.confidences(*vectors()).T, strict=True)),
    }
    for vlm, column in expected.items():
        np.testing.assert_allclose([answer.confidences[vlm] for answer in answers], column, atol=1e-6)


def test_batches_change_nothing(cascade: ServedRouter) -> None:
    together = cascade.answer(questions(), pictures(), choices=CHOICES)
    alone = [
        cascade.answer([question], [picture], choices=[offered])[0]
        for question, picture, offered in zip(questions(), pictures(), CHOICES, strict=True)
    ]
    assert [answer.vlm for answer in alone] == [answer.vlm for answer in together]
    for one, other in zip(alone, together, strict=True):
        assert one.confidences == pytest.approx(other.confidences, abs=1e-6)


def test_cascade_chooses_by_algorithm_1(cascade: ServedRouter) -> None:
    scores = every(cascade)
    for row, answer in enumerate(cascade.answer(questions(), pictures(), choices=CHOICES)):
        base, new = scores[row, [0, 2]], scores[row, [1, 3]]
        if base.max() > 0.6:
            expected, words = "ac"[base.argmax()], "is sure of"
        elif base.max() >= new.max():
            expected, words = "ac"[base.argmax()], "no more confidence in"
        else:
            expected, words = "bd"[new.argmax()], "the new router has more confidence in"
        assert (answer.vlm, words in answer.reason) == (expected, True)


def test_one_router_chooses_its_most_confident_candidate(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    save_served(tmp_path / "served", strategy="incremental", base=trained().incremental)
    served = load_served(tmp_path / "served")
    answers = served.answer(questions(), pictures(), choices=CHOICES)
    assert [answer.vlm for answer in answers] == ["abcd"[column] for column in every(served).argmax(1)]
    assert "has the highest confidence of 4 candidates" in answers[0].reason


def test_candidates_restrict_choice_and_confidences(cascade: ServedRouter) -> None:
    answers = cascade.answer(questions()[:4], pictures()[:4], candidates=[["b"], ["c", "a"], None, ["b", "d"]])
    assert [sorted(answer.confidences) for answer in answers] == [["b"], ["a", "c"], ["a", "b", "c", "d"], ["b", "d"]]
    assert answers[0].vlm == "b"
    assert "the base router knows no candidate" in answers[0].reason
    assert "the new router knows no candidate" in answers[1].reason


def test_reasons_say_what_decided(cascade: ServedRouter) -> None:
    answer = cascade.answer(questions()[:1], pictures()[:1])[0]
    sure = dataclasses.replace(cascade, tau=0.0).answer(questions()[:1], pictures()[:1])[0]
    best = max(answer.confidences["a"], answer.confidences["c"])
    assert sure.reason == f"the base router is sure of {sure.vlm} ({best:.2f} > tau 0)"


def test_pictures_are_taken_as_bytes_or_path(cascade: ServedRouter, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(pictures()[0])
    both = cascade.answer(questions()[:1] * 2, [pictures()[0], tmp_path / "one.png"])
    assert both[0].vlm == both[1].vlm
    assert both[0].confidences == pytest.approx(both[1].confidences, abs=1e-6)


def test_no_questions_give_no_answers(cascade: ServedRouter) -> None:
    assert cascade.answer([], []) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"candidates": [["z"]]}, "candidate 'z' of query 0 is no VLM of this router; known are: a, b, c, d"),
        ({"candidates": [[]]}, "candidates of query 0 are .*, expected a list of at least one VLM"),
        ({"candidates": ["a"]}, "expected a list of at least one VLM"),
        ({"candidates": [["a"], ["b"]]}, "1 questions came with 2 candidates"),
        ({"choices": []}, "1 questions came with 0 lists of choices"),
        ({"questions": [" "]}, "question 0 is ' ', expected a text that is not empty"),
        ({"questions": [None]}, "question 0 is None"),
        ({"questions": "which?"}, "put it in a list"),
        ({"pictures": []}, "1 questions came with 0 pictures"),
        ({"pictures": [b"GIF but not really"]}, "picture of query 0 .* is no picture that can be read"),
        ({"pictures": [b""]}, "picture of query 0 is empty"),
        ({"pictures": [Path("nowhere.png")]}, r"picture nowhere\.png is missing"),
        ({"pictures": [None]}, "of type NoneType, expected a file's bytes or its path"),
        ({"pictures": ["a.png"]}, "of type str"),
        ({"max_pixels": 100}, "at most 100 are allowed"),
    ],
)
def test_bad_input_is_refused_in_words(cascade: ServedRouter, arguments: dict[str, Any], words: str) -> None:
    given = {"questions": questions()[:1], "pictures": pictures()[:1]} | arguments
    with pytest.raises(ArmsError, match=words):
        cascade.answer(given.pop("questions"), given.pop("pictures"), **given)


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    save_toy_router(tmp_path / "router", ("a", "b"), identity='{"kind": "surface", "version": 0}')
    (tmp_path / "served").mkdir()
    save_served(tmp_path / "served", strategy="base", base=tmp_path / "router")
    with pytest.raises(DataError, match=r"encoder 'surface' here is .*, but this router was trained on vectors of"):
        load_served(tmp_path / "served").answer(questions()[:1], pictures()[:1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"new": "independent"}, "a cascade takes two routers and tau"),
        ({"tau": 0.5}, "one router takes no tau"),
        ({"new": "base", "tau": 0.5}, "knows no VLM that the one in"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    if "new" in arguments:
        arguments = arguments | {"new": getattr(trained(), arguments["new"])}
    with pytest.raises(ConfigError, match=words):
        save_served(tmp_path, strategy="s", base=trained().base, **arguments)


def test_missing_router_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no router in"):
        save_served(tmp_path, strategy="base", base=tmp_path / "nowhere")


def test_folder_with_nothing_served_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"served\.json is missing"):
        load_served(tmp_path)


def test_wrong_digest_is_refused(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"served\.json has sha256 .*, expected 0000"):
        load_served(folder, digest="0" * 64)


def test_copy_loads_as_the_original_and_with_a_byte_changed_not_at_all(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert load_served(tmp_path / "copy").digest == load_served(folder).digest
    path = tmp_path / "copy/new/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"new/weights\.safetensors has sha256"):
        load_served(tmp_path / "copy")


def test_base_alone_needs_no_second_router(tmp_path: Path) -> None:
    digest = save_toy_base(tmp_path / "served")
    assert json.loads((tmp_path / "served/served.json").read_text())["tau"] is None
    assert load_served(tmp_path / "served", digest=digest).routers[0].config.vlms == ("a", "c")


def retire(folder: Path, source: Path, *vlms: str) -> ServedRouter:
    folder.mkdir()
    digest = save_retired(folder, source=source, vlms=vlms)
    return load_served(folder, digest=digest)


@pytest.mark.parametrize("vlms", [("b",), ("a", "d"), ("a", "c"), ("b", "d"), ("a", "b", "d")])
def test_retired_vlms_are_known_and_not_chosen(
    folder: Path, cascade: ServedRouter, tmp_path: Path, vlms: tuple[str, ...]
) -> None:
    served = retire(tmp_path / "less", folder, *vlms)
    left = [vlm for vlm in "abcd" if vlm not in vlms]
    assert (served.vlms, served.retired) == (tuple(left), vlms)
    answers = served.answer(questions(), pictures(), choices=CHOICES)
    wanted = cascade.answer(questions(), pictures(), choices=CHOICES, candidates=[left] * len(questions()))
    assert answers == wanted  # as if nobody had offered what is retired


def test_retired_vlm_of_one_router_is_not_chosen(tmp_path: Path) -> None:
    save_toy_base(tmp_path / "served")
    served = retire(tmp_path / "less", tmp_path / "served", "a")
    assert {answer.vlm for answer in served.answer(questions()[:5], pictures()[:5])} == {"c"}


def test_retired_vlm_is_refused_as_candidate_by_name(folder: Path, tmp_path: Path) -> None:
    served = retire(tmp_path / "less", folder, "b")
    with pytest.raises(DataError, match=r"candidate 'b' of query 0 was retired.*name some of: a, c, d"):
        served.answer(questions()[:1], pictures()[:1], candidates=[["a", "b"]])


def test_retiring_adds_up_and_gives_the_same_bytes_again(folder: Path, tmp_path: Path) -> None:
    retire(tmp_path / "one", folder, "b")
    both = retire(tmp_path / "both", tmp_path / "one", "a")
    assert both.retired == ("a", "b")
    assert both.digest == retire(tmp_path / "again", folder, "b", "a").digest != load_served(folder).digest


def test_folder_without_retired_vlms_does_not_name_the_key(folder: Path) -> None:
    # so its digest is that of a version from before VLMs could be retired, and such a version loads
    assert set(json.loads((folder / "served.json").read_text())) == {"files", "format", "strategy", "tau", "vlms"}
    assert load_served(folder).retired == ()


@pytest.mark.parametrize(
    ("vlms", "words"),
    [
        (("z",), "'z' is no VLM that is chosen here; known are: a, b, c, d"),
        (("a", "b", "c", "d"), "4 of 4 VLMs would be retired"),
        ((), "0 of 4 VLMs would be retired; name at least one"),
    ],
)
def test_what_cannot_be_retired_is_refused(folder: Path, tmp_path: Path, vlms: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        save_retired(tmp_path, source=folder, vlms=vlms)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retired": ["z"]}, "no router knows z, which is retired"),
        ({"retired": ["a"]}, "expected sorted names, none of them in vlms"),
        ({"retired": ["d", "b"], "vlms": {"a": "base", "c": "base"}}, "expected sorted names"),
        ({"retired": ["a", "b", "c", "d"], "vlms": {}}, "vlms is empty"),
        ({"vlms": {"a": "base", "c": "base", "d": "new"}}, r"vlms do not fit the routers \(b\)"),
    ],
)
def test_selection_space_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy/served.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StorageError, match=words):
        load_served(tmp_path / "copy")
