"""The sandbox's VLMs by name: small real programs that look at a picture's pixels and parse the question's words.

A program gets the picture's bytes and the question and nothing else: no gold answer, no query id, no benchmark's name.
What it is wrong at it is wrong at for a reason: a language it was not written for, a picture it scales down too far,
noise it does not remove. Where it has no skill it guesses, in the form asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Program:
    """One VLM of the sandbox.

    Args:
        name: the model name that the endpoint serves it under.
        latency_s: seconds that the endpoint waits before it answers, as a larger model would take longer.
        answer: the picture file's bytes and the question's text to the answer's text; CPU-bound and safe to call from
            several threads; raises ValueError for a picture that cannot be read.
    """

    name: str
    latency_s: float
    answer: Callable[[bytes, str], str]


def _guess_first(picture: bytes, question: str) -> str:
    """The first choice, whatever is asked."""
    return "A"


PROGRAMS: dict[str, Program] = {
    program.name: program for program in (Program(name="first-choice", latency_s=0.01, answer=_guess_first),)
}
