"""Small trained routers over encoders that need no weights, with the questions and pictures they were trained on."""

import atexit
import io
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image

from arms_model.answering import Vectors
from arms_model.calibration import CalibrationSettings
from arms_model.encoders.build import EncoderSettings, build
from arms_model.encoders.question_text import question_text
from arms_model.fitting import fit_router
from arms_model.network import NetworkSettings
from arms_model.router import RouterConfig
from arms_model.served import save_served
from arms_model.sources import KeptVectors
from arms_model.storage import save_router
from arms_model.training import TrainingData, TrainingSettings

NUM_QUERIES = 60
TRAINING = TrainingSettings(epochs=2, batch_size=16, batching="by_query", learning_rate=3e-3, patience=2)
SURFACE, PIXELS = EncoderSettings(kind="surface"), EncoderSettings(kind="pixels")
CHOICES = [["red", "green"] if number % 2 else None for number in range(NUM_QUERIES)]


def questions() -> list[str]:
    return [f"Drawing {number}: is the square {'red' if number % 3 else 'green'}?" for number in range(NUM_QUERIES)]


@cache
def pictures() -> list[bytes]:
    """Squares of different sizes and colours, as PNG files."""
    return [_png(number) for number in range(NUM_QUERIES)]


def _png(number: int) -> bytes:
    picture = Image.new("RGB", (40 + number, 40), "white")
    picture.paste((200, 10 * (number % 20), 40), (5, 5, 10 + number % 25, 30))
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


@cache
def vectors() -> Vectors:
    """The kept vectors, made one by one and not in batches."""
    surface, pixels = build(SURFACE), build(PIXELS)
    texts = [question_text(question, offered) for question, offered in zip(questions(), CHOICES, strict=True)]
    question = [surface.encode([surface.prepare(text)])[0] for text in texts]
    picture = [pixels.encode([pixels.prepare(Image.open(io.BytesIO(png)).convert("RGB"))])[0] for png in pictures()]
    return np.stack(question), np.stack(picture)


def save_toy_router(folder: Path, vlms: tuple[str, ...], *, seed: int = 0, identity: str | None = None) -> None:
    """Train a router over `vlms` on made-up labels and write it to `folder`."""
    question, picture = vectors()
    generator = torch.Generator().manual_seed(seed)
    width = 4
    config = RouterConfig(
        network=NetworkSettings(num_experts=2, width=8, standardise=True, picture_components=2),
        num_members=1,
        question_encoders={"surface": SURFACE},
        picture_encoders={"pixels": PIXELS},
        profile_encoder="surface",
        profile="sentence",
        encoder_identities={"surface": identity or build(SURFACE).identity, "pixels": build(PIXELS).identity},
        question_width=question.shape[1],
        picture_width=picture.shape[1],
        profile_width=width,
        vlms=vlms,
        profiles=tuple(f"{vlm}." for vlm in vlms),
    )
    data = TrainingData(
        question=KeptVectors(torch.from_numpy(question)),
        picture=KeptVectors(torch.from_numpy(picture)),
        profiles=KeptVectors(torch.randn(len(vlms), width, generator=generator)),
        correct=(torch.rand(NUM_QUERIES, len(vlms), generator=generator) > 0.4).float(),
        train=torch.arange(45),
        validation=torch.arange(45, NUM_QUERIES),
    )
    fitted = fit_router(config, data, training=TRAINING, calibration=CalibrationSettings(min_labels=5), seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_router(fitted.router, folder)


@dataclass(frozen=True)
class Routers:
    """Folders of trained routers."""

    base: Path  # a, c
    incremental: Path  # a, b, c, d
    independent: Path  # b, d


@cache
def trained() -> Routers:
    """The three routers, trained once a session; never write into their folders."""
    top = Path(mkdtemp(prefix="toy-routers-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    routers = Routers(base=top / "base", incremental=top / "incremental", independent=top / "independent")
    save_toy_router(routers.base, ("a", "c"))
    save_toy_router(routers.incremental, ("a", "b", "c", "d"), seed=1)
    save_toy_router(routers.independent, ("b", "d"), seed=2)
    return routers


def save_toy_cascade(folder: Path, *, tau: float = 0.6) -> str:
    """A served cascade of the base and the independent router; its digest."""
    folder.mkdir(parents=True)
    routers = trained()
    return save_served(folder, strategy="base + independent", base=routers.base, new=routers.independent, tau=tau)


def save_toy_base(folder: Path) -> str:
    """The served base router; its digest."""
    folder.mkdir(parents=True)
    return save_served(folder, strategy="base", base=trained().base)
