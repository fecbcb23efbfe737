"""Speed of training and of routing, as ratios in one run: what grouping by query and one matrix product save.

1. Training, seconds per 1,000 labelled pairs: `by_query` against `by_pair` (the paper's), over kept vectors and with a
   text encoder that learns in the loop; with `--paper` also the network of presets/paper.yaml, both encoders learning.
   Their passes are counted on both sides: questions and profiles encoded per 1,000 labelled pairs. A text asked for
   twice in one step is encoded once. A step of `by_query` holds all labels of its queries, so an epoch has fewer steps;
   that is part of what it saves.
2. Routing over 1,000 VLMs against 4, all scored by one matrix product.
3. Scoring all VLMs at once against one by one, with the fused query kept and, as the paper writes it, fused anew.

Inputs are made up and weights are untrained: figures compare by their ratios only.

Run from the checkout: `python -m benchmarks.training [--queries 128] [--vlms 12] [--paper]`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from arms_model.batches import Batching, num_batches
from arms_model.encoders.build import EncoderSettings, build_trainable
from arms_model.encoders.protocol import TrainableEncoder
from arms_model.network import ArmsNetwork, NetworkSettings
from arms_model.settings import parse
from arms_model.sources import EncodedInLoop, KeptVectors, Source
from arms_model.training import TrainingData, TrainingSettings, train

TEXT, PICTURE = 384, 512  # widths of kept vectors
FEW, MANY = 4, 1000
WORDS = ("how", "many", "of", "the", "bars", "in", "chart", "are", "higher", "than", "value", "for", "year", "what")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: the encoders that learn in the loop (None: kept vectors), and the network."""

    name: str
    text: EncoderSettings | None = None
    picture: EncoderSettings | None = None
    network: NetworkSettings = field(default_factory=NetworkSettings)
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What 1,000 labelled pairs cost."""

    seconds: float
    steps: float
    questions: float
    profiles: float


class Counted:
    """A text encoder that counts the texts it encodes."""

    def __init__(self, encoder: TrainableEncoder) -> None:
        self.encoder, self.count = encoder, 0
        self.width, self.module, self.prepare = encoder.width, encoder.module, encoder.prepare

    def forward(self, prepared: Sequence[Any]) -> Tensor:
        """Vectors with gradient, (B, width)."""
        self.count += len(prepared)
        return self.encoder.forward(prepared)


def main() -> int:
    """Print the tables; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--vlms", type=int, default=12, help="in training")
    parser.add_argument("--paper", action="store_true", help="also the network of presets/paper.yaml: minutes, 4 GB")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_header(given.vlms)
    print_training(Case(name="kept vectors"), given.queries, given.vlms)
    minilm = EncoderSettings(kind="minilm", max_tokens=64)
    print_training(Case(name="MiniLM in the loop", text=minilm), given.queries, given.vlms)
    if given.paper:
        print_training(paper_case(), min(given.queries, 16), given.vlms)
    print_routing(given.queries)
    return 0


def paper_case() -> Case:
    """Preset paper with random weights, in smaller batches."""
    preset = YAML(typ="safe").load(Path("presets/paper.yaml").read_text())
    without_hub = {"name": "distilbert", "weights": "random", "tokenizer": "minilm"}
    return Case(
        name="preset paper, random",
        text=EncoderSettings(**preset["embed"]["questions"]["distilbert"] | without_hub),
        picture=EncoderSettings(**preset["embed"]["pictures"]["clip"] | {"weights": "random"}),
        network=parse(NetworkSettings, preset["train_base"]["network"], "train_base.network"),
        batch_size=16,
    )


def print_header(num_vlms: int) -> None:
    """The head of the training table."""
    print(f"\nTraining over {num_vlms} VLMs, one thread, per 1,000 labelled pairs")
    columns = f"{'seconds':>10}{'steps':>8}{'questions':>11}{'profiles':>10}{'ratio':>8}"
    print(f"{'inputs':22}{'queries':>8}{'batch':>7}  {'batching':10}{columns}")


def print_training(case: Case, num_queries: int, num_vlms: int) -> None:
    """Both batchings of a case."""
    by_query, by_pair = (training_speed(case, batching, num_queries, num_vlms) for batching in ("by_query", "by_pair"))
    for batching, speed in (("by_query", by_query), ("by_pair", by_pair)):
        columns = f"{speed.seconds:10.3f}{speed.steps:8.1f}{speed.questions:11.0f}{speed.profiles:10.0f}"
        ratio = f"{speed.seconds / by_query.seconds:8.2f}"
        print(f"{case.name:22}{num_queries:8}{case.batch_size:7}  {batching:10}{columns}{ratio}", flush=True)


def training_speed(case: Case, batching: Batching, num_queries: int, num_vlms: int) -> Speed:
    """One epoch from fresh weights, after one step to warm up; every pair has a label."""
    shared = build_trainable(case.text) if case.text else None  # questions and profiles pass the same weights
    counters: list[Counted] = []

    def texts(items: list[str]) -> Source:
        if shared is None:
            return KeptVectors(torch.randn(len(items), TEXT))
        counters.append(Counted(shared))
        return EncodedInLoop(counters[-1], items)  # type: ignore[arg-type]  # it has all that the loop asks for

    data = TrainingData(
        question=texts(made_up_texts(num_queries, 40)),
        picture=pictures(case, num_queries),
        profiles=texts(made_up_texts(num_vlms, 20)),
        correct=torch.randint(0, 2, (num_queries, num_vlms)).float(),
        train=torch.arange(num_queries),
        validation=torch.arange(0),
    )
    settings = TrainingSettings(epochs=1, batch_size=case.batch_size, batching=batching)
    network = make_network(case.network, data)
    warm_up = TrainingData(**(vars(data) | {"train": data.train[:1]}))
    train(network, warm_up, settings=settings, seed=0)
    for counter in counters:
        counter.count = 0
    started = time.perf_counter()
    train(network, data, settings=settings, seed=0)
    seconds, thousands = time.perf_counter() - started, num_queries * num_vlms / 1000
    steps = num_batches(data.correct, data.train, batching=batching, batch_size=case.batch_size)
    questions, profiles = [counter.count / thousands for counter in counters] or [0.0, 0.0]
    return Speed(seconds=seconds / thousands, steps=steps / thousands, questions=questions, profiles=profiles)


@torch.inference_mode()
def print_routing(num_queries: int) -> None:
    """Routing few VLMs and many; all at once and one by one. A row's ratio is to the first row of its kind."""
    data = TrainingData(
        question=KeptVectors(torch.randn(num_queries, TEXT)),
        picture=KeptVectors(torch.randn(num_queries, PICTURE)),
        profiles=KeptVectors(torch.randn(MANY, TEXT)),
        correct=torch.zeros(num_queries, MANY),
        train=torch.arange(num_queries),
        validation=torch.arange(0),
    )
    network = make_network(NetworkSettings(), data).eval()
    q, v, profiles = (
        data.question.rows(data.train),
        data.picture.rows(data.train),
        data.profiles.rows(torch.arange(MANY)),
    )
    fused = network.fuse(q, v)

    def one_by_one(*, fuse_anew: bool) -> None:
        for column in range(MANY):
            vlm = torch.full((num_queries,), column)
            network.score_pairs(network.fuse(q, v) if fuse_anew else fused, profiles[vlm], vlm)

    few, many = median_s(lambda: network(q, v, profiles[:FEW])), median_s(lambda: network(q, v, profiles))
    kept = median_s(lambda: network.score(fused, profiles))
    rows = (
        (f"{FEW} VLMs, fused and scored at once", few, few),
        (f"{MANY} VLMs, fused and scored at once", many, few),
        (f"{MANY} VLMs scored at once, fused query kept", kept, kept),
        (f"{MANY} VLMs scored one by one, fused query kept", median_s(lambda: one_by_one(fuse_anew=False)), kept),
        (f"{MANY} VLMs fused and scored at once", many, many),
        (f"{MANY} VLMs fused and scored one by one", median_s(lambda: one_by_one(fuse_anew=True), repeats=1), many),
    )
    print(f"\nRouting, {num_queries} queries, kept vectors, 4 experts {TEXT} wide, one thread")
    print(f"{'':52}{'ms / query':>12}{'ratio':>9}")
    for name, seconds, reference in rows:
        print(f"{name:52}{1000 * seconds / num_queries:12.4f}{seconds / reference:9.1f}")


def make_network(settings: NetworkSettings, data: TrainingData) -> ArmsNetwork:
    """A network over these sources."""
    return ArmsNetwork(
        settings,
        question_width=data.question.width,
        picture_width=data.picture.width,
        profile_width=data.profiles.width,
        num_vlms=data.correct.shape[1],
    )


def pictures(case: Case, count: int) -> Source:
    """Plain pictures through the case's encoder, or vectors."""
    if case.picture is None:
        return KeptVectors(torch.randn(count, PICTURE))
    items = [Image.new("RGB", (448, 336), (number % 256, 90, 120)) for number in range(count)]
    return EncodedInLoop(build_trainable(case.picture), items)


def made_up_texts(count: int, num_words: int) -> list[str]:
    """Texts of about `num_words` words, no two alike."""
    draws = torch.randint(0, len(WORDS), (count, num_words)).tolist()
    return [f"{number}: " + " ".join(WORDS[word] for word in draw) for number, draw in enumerate(draws)]


def median_s(action: Callable[[], object], *, repeats: int = 5) -> float:
    """Median time of `action`, s, after one call to warm up where it is repeated."""
    times = []
    if repeats > 1:
        action()
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
