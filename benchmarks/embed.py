"""Speed of the encoders, each beside the others in one run: items per second, ratios, and how threads are best used.

Pictures and questions are made up here (pictures of 448 px, as WEBP files; questions of about 40 words), so figures are
comparable between machines by their ratios only. Times hold reading, decoding, preparing and encoding.

Run from the checkout: `python -m benchmarks.embed [number of items]`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from arms_model.encoders.build import EncoderSettings, build
from arms_model.errors import ConfigError
from arms_model.pictures import open_picture
from tasks.common.encoding import Item, StoredEncoder, encode_missing
from tasks.common.vectors import VectorStore

ENCODERS = {
    "surface": EncoderSettings(kind="surface"),
    "minilm": EncoderSettings(kind="minilm"),
    "distilbert, random": EncoderSettings(kind="transformers", name="distilbert", weights="random", tokenizer="minilm"),
    "pixels": EncoderSettings(kind="pixels"),
    "efficientnet 128 px": EncoderSettings(kind="efficientnet", size=128),
    "efficientnet 224 px": EncoderSettings(kind="efficientnet", size=224),
    "CLIP ViT-B-32, random": EncoderSettings(kind="open_clip", name="ViT-B-32", weights="random"),
}
REFERENCES = {"question": "minilm", "picture": "efficientnet 224 px"}
BATCH_SIZE = 32


def main() -> int:
    """Print the table; the exit code."""
    num_items = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates: dict[str, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        items = {"question": made_up_questions(num_items), "picture": made_up_pictures(Path(folder), num_items)}
        for name, settings in ENCODERS.items():
            try:
                stored = stored_encoder(name, settings, Path(folder))
            except ConfigError as error:
                print(f"{name}: left out ({error})")
                continue
            rates[name] = (settings.modality, measured(items[settings.modality], stored, settings.modality))
        print_table(rates, num_items)
        print_threads(items["picture"], num_threads)
    return 0


def stored_encoder(name: str, settings: EncoderSettings, folder: Path) -> StoredEncoder:
    """The encoder with an empty store."""
    encoder = build(settings)
    return StoredEncoder(name, encoder, VectorStore(folder / name, identity=encoder.identity, width=encoder.width))


def measured(items: list[Item], stored: StoredEncoder, what: str) -> float:
    """Items per second through the stage's own loop, after one batch to warm up."""
    prepared = [stored.encoder.prepare(item.load()) for item in items[:BATCH_SIZE]]
    stored.encoder.encode(prepared)
    started = time.perf_counter()
    assert encode_missing(items, [stored], batch_size=BATCH_SIZE, what=what) == {stored.name: len(items)}
    return len(items) / (time.perf_counter() - started)


def print_table(rates: dict[str, tuple[str, float]], num_items: int) -> None:
    """One line per encoder, with its ratio to the reference of its modality."""
    print(f"\n{num_items} items, batches of {BATCH_SIZE}, one torch thread per batch, a batch per core\n")
    print(f"{'encoder':24}{'takes':12}{'items/s':>10}{'x reference':>14}")
    for name, (modality, rate) in rates.items():
        _, reference = rates.get(REFERENCES[modality], ("", float("nan")))
        print(f"{name:24}{modality:12}{rate:10.1f}{rate / reference:14.2f}")


def print_threads(items: list[Item], num_threads: int) -> None:
    """The same batches one after the other with all torch threads, against one thread per batch."""
    try:
        encoder: Any = build(EncoderSettings(kind="efficientnet", size=128))
    except ConfigError:
        return
    prepared = [encoder.prepare(item.load()) for item in items]
    batches = [prepared[start : start + BATCH_SIZE] for start in range(0, len(prepared), BATCH_SIZE)]
    rates = {}
    for count in sorted({1, num_threads}):
        torch.set_num_threads(count)
        rates[count] = len(items) / seconds(lambda: [encoder.encode(batch) for batch in batches])
    torch.set_num_threads(1)
    print(
        f"\nefficientnet 128 px, encoding alone, batch after batch, with {num_threads} torch threads against one:",
        end=" ",
    )
    print(f"{rates[num_threads]:.1f} against {rates[1]:.1f} items/s, x {rates[num_threads] / rates[1]:.2f}")


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes the second time, s."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def made_up_questions(num_items: int) -> list[Item]:
    """Questions of about 40 words with four choices, sorted by length."""
    draw = np.random.default_rng(0)
    words = np.array(
        ["how many", "of", "the", "red", "blue", "balls", "are", "larger", "than", "chart", "value", "angle"]
    )
    texts = [" ".join(draw.choice(words, draw.integers(10, 70))) + "?\nA. 1\nB. 2\nC. 3" for _ in range(num_items)]
    return [item(f"question {number}", text) for number, text in enumerate(sorted(texts, key=len))]


def item(name: str, text: str) -> Item:
    """A question as an item under a key of its own."""
    return Item(key_of(name), name, lambda: text)


def made_up_pictures(folder: Path, num_items: int) -> list[Item]:
    """Drawings on white, 448 x 336 px, as WEBP files."""
    draw = np.random.default_rng(0)
    items = []
    for number in range(num_items):
        picture = Image.new("RGB", (448, 336), "white")
        pen = ImageDraw.Draw(picture)
        for left, top, width in draw.integers(10, 250, (12, 3)):
            pen.ellipse((left, top, left + width, top + width // 2), fill=tuple(map(int, draw.integers(0, 255, 3))))
        path = folder / f"{number}.webp"
        picture.save(path)
        items.append(Item(key_of(path.name), path.name, lambda path=path: open_picture(path)))
    return items


def key_of(name: str) -> str:
    """A store's key for made-up items: its name in hex, filled up to 32 bytes."""
    return name.encode().hex().ljust(64, "0")


if __name__ == "__main__":
    sys.exit(main())
