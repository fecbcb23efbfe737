import pytest

from arms_model.errors import ConfigError
from arms_model.profiles import VlmFacts, profile_sentence

FULL = VlmFacts(
    name="Toy-VL 7B",
    provider="Toy Lab",
    params_b=7.3,
    architecture="mixture of experts",
    language_model="ToyLM-7B",
    vision_model="ToyViT-L",
    languages=("English", "German", "Hindi"),
    released="2024-03",
)


def test_sentence_says_all_that_is_known() -> None:
    assert profile_sentence(FULL) == (
        "Toy-VL 7B is a vision-language model by Toy Lab with 7.3 billion parameters, "
        "the architecture mixture of experts, the language model ToyLM-7B and the vision model ToyViT-L, "
        "answering in English, German and Hindi, "
        "released in March 2024."
    )


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (VlmFacts(name="Toy"), "Toy is a vision-language model."),
        (VlmFacts(name="Toy", params_b=7.0), "Toy is a vision-language model with 7 billion parameters."),
        (
            VlmFacts(name="Toy", released="2023-12"),
            "Toy is a vision-language model, released in December 2023.",
        ),
        (VlmFacts(name="Toy", languages=("Urdu",)), "Toy is a vision-language model, answering in Urdu."),
        (
            VlmFacts(name="Toy", provider="Lab", language_model="L", vision_model="V"),
            "Toy is a vision-language model by Lab with the language model L and the vision model V.",
        ),
    ],
)
def test_unknown_fields_are_left_out(facts: VlmFacts, sentence: str) -> None:
    assert profile_sentence(facts) == sentence


def test_name_variant_tells_nothing_but_the_name() -> None:
    assert profile_sentence(FULL, variant="name") == "Toy-VL 7B"


@pytest.mark.parametrize("month", ["2024", "2024-00", "2024-13", "March 2024", "2024-3"])
def test_release_that_is_no_month_is_refused(month: str) -> None:
    with pytest.raises(ConfigError, match="expected a month as 'YYYY-MM'"):
        profile_sentence(VlmFacts(name="Toy", released=month))


def test_empty_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="the name is empty"):
        profile_sentence(VlmFacts(name="  "))
