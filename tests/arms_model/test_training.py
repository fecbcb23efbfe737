"""The training loop: equal losses of both batchings, seeds, early stopping, and resuming."""

from pathlib import Path

import pytest
import torch

from arms_model.batches import Batch, labelled_pairs
from arms_model.callbacks import Checkpoints, EarlyStopping, Quiet
from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.heads import HeadSettings
from arms_model.network import ArmsNetwork, NetworkSettings
from arms_model.sources import KeptVectors
from arms_model.training import LoopState, TrainingData, TrainingSettings, batch_loss, predict, seed_everything, train

NAN = float("nan")
NUM_QUERIES, NUM_VLMS = 240, 3


def make_network(*, kind: str = "dot", dropout: float = 0.2) -> ArmsNetwork:
    seed_everything(3)
    settings = NetworkSettings(num_experts=2, dropout=dropout, head=HeadSettings(kind=kind))
    return ArmsNetwork(settings, question_width=6, picture_width=4, profile_width=5, num_vlms=NUM_VLMS)


def make_data() -> TrainingData:
    """Queries whose first number says which of the VLMs 0 and 1 is right; VLM 2 is asked half of them."""
    generator = torch.Generator().manual_seed(5)
    question, picture = (
        torch.randn(NUM_QUERIES, 6, generator=generator),
        torch.randn(NUM_QUERIES, 4, generator=generator),
    )
    first = (question[:, 0] > 0).float()
    third = torch.where(torch.arange(NUM_QUERIES) % 2 == 0, torch.ones(NUM_QUERIES), torch.full((NUM_QUERIES,), NAN))
    return TrainingData(
        question=KeptVectors(question),
        picture=KeptVectors(picture),
        profiles=KeptVectors(torch.randn(NUM_VLMS, 5, generator=generator)),
        correct=torch.stack([first, 1 - first, third], dim=1),
        train=torch.arange(180),
        validation=torch.arange(180, NUM_QUERIES),
    )


def quick(**changes: object) -> TrainingSettings:
    values = {"epochs": 4, "batch_size": 32, "batching": "by_query", "learning_rate": 3e-3, "checkpoint_every_s": 0.0}
    return TrainingSettings(**(values | changes))


class StopAt(Quiet):
    """Ctrl-C after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: LoopState) -> None:
        if state.steps_done == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_by_query_and_by_pair_give_the_same_loss_and_gradient_on_the_same_pairs(kind: str) -> None:
    data = make_data()
    rows = torch.tensor([1, 4, 7, 8, 30])
    pairs = labelled_pairs(data.correct, rows)
    found = []
    for batch in (Batch(queries=rows, vlms=None), Batch(queries=pairs[:, 0], vlms=pairs[:, 1])):
        network = make_network(kind=kind, dropout=0.0)
        loss = batch_loss(network, data, batch, quick())
        loss.backward()
        found.append((loss.item(), [p.grad for p in network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("batching", ["by_query", "by_pair"])
def test_training_learns_what_is_there(batching: str) -> None:
    network, data = make_network(dropout=0.0), make_data()
    train(network, data, settings=quick(epochs=15, batching=batching), seed=0)
    logits = predict(network, data, data.validation)
    # The first number of a question says which of the first two VLMs is right; chance is one half.
    chosen = logits[:, :2].argmax(1)
    assert data.correct[data.validation, chosen].mean() >= 0.8


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        network = make_network()
        train(network, make_data(), settings=quick(), seed=seed)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 17])
@pytest.mark.parametrize("patience", [None, 2])
def test_interrupted_and_resumed_ends_with_the_same_weights(tmp_path: Path, stop_at: int, patience: int | None) -> None:
    stopping = [] if patience is None else [EarlyStopping(patience)]
    whole = make_network()
    history = train(whole, make_data(), settings=quick(), seed=1, callbacks=stopping)

    path = tmp_path / "checkpoint.safetensors"

    def run(network: ArmsNetwork, *extra: Quiet) -> list[dict[str, float]]:
        own = [] if patience is None else [EarlyStopping(patience)]
        keeper = Checkpoints(path, fingerprint={"seed": "1"}, every_s=0.0)
        return train(network, make_data(), settings=quick(), seed=1, callbacks=[*own, keeper, *extra])

    with pytest.raises(KeyboardInterrupt):
        run(make_network(), StopAt(stop_at))
    assert path.exists()
    resumed = make_network()
    assert run(resumed) == history
    assert run(make_network()) == history  # a finished run is not trained again, only brought back
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_checkpoint_of_another_configuration_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        keeper = Checkpoints(path, fingerprint={"seed": "1", "learning_rate": "0.003"}, every_s=0.0)
        train(make_network(), make_data(), settings=quick(), seed=1, callbacks=[keeper, StopAt(3)])
    other = Checkpoints(path, fingerprint={"seed": "1", "learning_rate": "0.001"}, every_s=0.0)
    with pytest.raises(ConfigError, match=r"learning_rate: checkpoint '0\.003', now '0\.001'.*remove the file"):
        train(make_network(), make_data(), settings=quick(), seed=1, callbacks=[other])
    assert path.exists()


def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors cannot be read"):
        train(
            make_network(),
            make_data(),
            settings=quick(),
            seed=1,
            callbacks=[Checkpoints(path, fingerprint={}, every_s=0.0)],
        )


def test_early_stopping_keeps_the_best_epochs_weights() -> None:
    data = make_data()
    network = make_network(dropout=0.0)
    history = train(network, data, settings=quick(epochs=60, learning_rate=0.05), seed=0, callbacks=[EarlyStopping(2)])
    losses = [record["validation_loss"] for record in history]
    best = losses.index(min(losses))
    assert len(losses) < 60 and len(losses) == best + 3
    again = make_network(dropout=0.0)
    train(again, data, settings=quick(epochs=60, learning_rate=0.05), seed=0, callbacks=[_StopAfter(best + 1)])
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


class _StopAfter(Quiet):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch(self, state: LoopState) -> None:
        state.stop = state.epoch >= self.epochs


def test_only_moving_groups_move() -> None:
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, make_data(), settings=quick(moving=("head",)), seed=0)
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head"}


def test_rows_kept_per_vlm_stay_where_a_vlm_has_no_label() -> None:
    data = make_data()
    data.correct[:, 1] = NAN
    network = make_network()
    with torch.no_grad():
        network.head.vlm_vectors.fill_(0.3)
        network.head.vlm_bias.fill_(-0.2)
    train(network, data, settings=quick(vlm_vector_penalty=1.0, weight_decay=0.5), seed=0)
    assert (network.head.vlm_vectors[1] == 0.3).all() and network.head.vlm_bias[1].item() == pytest.approx(-0.2)
    assert not (network.head.vlm_vectors[0] == 0.3).any()


def test_training_part_without_labels_is_refused() -> None:
    data = make_data()
    with pytest.raises(DataError, match="no labelled pair to train on"):
        TrainingData(
            question=data.question,
            picture=data.picture,
            profiles=data.profiles,
            correct=torch.full_like(data.correct, NAN),
            train=data.train,
            validation=data.validation,
        )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"moving": ()}, "moving must name at least one"),
        ({"batching": "by_pair", "loss_average": "queries"}, "need batching: by_query"),
    ],
)
def test_settings_refuse_what_cannot_be_run(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        quick(**changes)
