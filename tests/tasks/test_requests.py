"""What is sent, and the key that says whether it was asked before."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arms_model.errors import DataError
from tasks.common.endpoint.requests import (
    Picture,
    Request,
    make_request,
    message_body,
    picture_as_sent,
    render_prompt,
)
from tasks.common.vlms import Vlm, parse_vlms


def vlm(**endpoint: Any) -> Vlm:
    block = {"name": "toy", "display_name": "Toy", "provider": "Toy Lab", "pool": "base"}
    block |= {"endpoint": {"name": "lab", "base_url": "http://127.0.0.1:1/v1", "model": "m", **endpoint}}
    return parse_vlms([block])[0]


def write_picture(folder: Path, name: str, size: tuple[int, int], **options: Any) -> Path:
    path = folder / name
    Image.linear_gradient("L").resize(size).convert("RGB").save(path, **options)
    return path


def sent(path: Path, max_side: int | None = None) -> Picture:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return picture_as_sent(path, sha256=sha256, max_side=max_side, max_pixels=10**6)


def opened(picture: Picture) -> Image.Image:
    head, _, content = picture.data_url().partition(";base64,")
    assert head == f"data:{picture.media_type}"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def request_of(tmp_path: Path) -> "RequestOf":
    return RequestOf(write_picture(tmp_path, "a.png", (60, 40)))


class RequestOf:
    """Makes the same question to endpoints that differ."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, prompt: str = "How many?", max_side: int | None = None, **endpoint: Any) -> Request:
        picture = sent(self.path, max_side)
        return make_request(vlm(**endpoint), query_id="q", prompt=prompt, picture=picture)


@pytest.mark.parametrize(
    "free",
    [
        {"base_url": "https://elsewhere:9/v1"}, {"api_key_variable": "SOME_KEY"}, {"concurrency": 99},
        {"requests_per_minute": 3}, {"timeout_s": 1}, {"retries": 0}, {"served_as": ["n"]}, {"image_tokens": 5},
        {"max_answer_bytes": 5}, {"max_side": 4096},
        {"generation": {"max_tokens": 512, "temperature": 0, "seed": None}},
        {"generation": {"max_tokens": 512, "temperature": 0.0}},
    ],
)  # fmt: skip
def test_key_stays_when_what_changes_does_not_decide_the_answer(request_of: RequestOf, free: dict[str, Any]) -> None:
    assert request_of(**free).key == request_of().key


@pytest.mark.parametrize(
    "deciding",
    [
        {"name": "other-lab"}, {"model": "n"}, {"system": "Be brief."}, {"image_detail": "low"},
        {"generation": {"temperature": 1, "max_tokens": 512}}, {"prompt": "How much?"}, {"max_side": 30},
    ],
)  # fmt: skip
def test_key_changes_with_what_decides_the_answer(request_of: RequestOf, deciding: dict[str, Any]) -> None:
    assert request_of(**deciding).key != request_of().key


def test_key_is_the_same_for_ever(request_of: RequestOf) -> None:
    # written down when the rule was made: a change here asks, and pays for, everything again
    picture = Picture(
        path=Path("any.png"), sha256="ab" * 32, media_type="image/png", size=(60, 40), max_side=None, max_pixels=10
    )
    request = make_request(vlm(), query_id="q", prompt="Wie viele Äpfel?", picture=picture)
    assert request.key == "050e502483975ec2e9d2dd0fcc1e6dbc58dd7b8d744f9373e89bba19a6a138fa"
    scaled = Picture(
        path=Path("any.png"), sha256="ab" * 32, media_type="image/png", size=(30, 20), max_side=30, max_pixels=10
    )
    assert (
        make_request(vlm(), query_id="q", prompt="Wie viele Äpfel?", picture=scaled).key
        == "65c26cbe4a6b82ae0fe5190b809604294134a4f92a6bbfb21b78c90d12dc8110"
    )


def test_small_picture_is_sent_as_it_is_stored(tmp_path: Path) -> None:
    path = write_picture(tmp_path, "a.jpg", (60, 40))
    picture = sent(path, max_side=60)
    assert base64.b64decode(picture.data_url().partition(",")[2]) == path.read_bytes()
    assert (picture.media_type, picture.size) == ("image/jpeg", (60, 40))


def test_large_picture_is_scaled_to_its_longest_side(tmp_path: Path) -> None:
    for name, media_type in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "PNG")):
        picture = sent(write_picture(tmp_path, name, (60, 40)), max_side=30)
        assert (opened(picture).size, opened(picture).format) == ((30, 20), media_type)
        assert picture.size == (30, 20)


def test_picture_of_a_format_that_endpoints_do_not_take_is_converted(tmp_path: Path) -> None:
    picture = sent(write_picture(tmp_path, "a.bmp", (60, 40)))
    assert (opened(picture).format, opened(picture).size) == ("PNG", (60, 40))


def test_turned_picture_is_scaled_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture = sent(write_picture(tmp_path, "a.jpg", (60, 40), exif=exif), max_side=30)
    assert opened(picture).size == (20, 30)


def test_truncated_picture_is_refused_when_it_is_scaled(tmp_path: Path) -> None:
    path = write_picture(tmp_path, "a.png", (60, 40))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="truncated"):
        sent(path, max_side=30).data_url()


def test_prompt_is_filled_once_and_nothing_in_a_question_is_taken_for_a_name() -> None:
    template = "In {language}: {question}\n{options}"
    prompt = render_prompt(template, question="What is {options} in {x}?", choices=["{question}", "b"], language="en")
    assert prompt == "In en: What is {options} in {x}?\nA. {question}\nB. b"


def test_prompt_without_choices_has_no_empty_lines() -> None:
    assert render_prompt("{question}\n{options}", question="How many?", choices=None, language="en") == "How many?"


def test_choices_beyond_z_have_two_letters() -> None:
    choices = [f"choice {number}" for number in range(54)]
    lines = render_prompt("{question}\n{options}", question="Which?", choices=choices, language="en").splitlines()
    assert [line.split(". ")[0] for line in lines[26:29]] == ["Z", "AA", "AB"]
    assert lines[-1] == "BB. choice 53"


def test_message_holds_picture_text_and_parameters(request_of: RequestOf) -> None:
    generation = {"max_tokens": 7, "temperature": None}
    request = request_of(image_detail="low", system="Be brief.", generation=generation)
    body = message_body(vlm(image_detail="low", system="Be brief.", generation=generation), request)
    assert body["max_tokens"] == 7
    assert "temperature" not in body
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][1] == {"type": "text", "text": "How many?"}
    assert user["content"][0]["image_url"]["detail"] == "low"
