"""What happens around the training loop: the console, early stopping, checkpoints. One door each, none needed.

Order matters: early stopping before the checkpoint, so that a checkpoint holds the best weights that the epoch just
finished may have set; the console last, so that it counts from where a checkpoint was resumed.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arms_model.errors import ConfigError, StorageError
from arms_model.progress import Progress
from arms_model.storage import under
from arms_model.training import LoopState

logger = logging.getLogger(__name__)


class Quiet:
    """A callback that does nothing at any moment; others override what they need."""

    def on_start(self, state: LoopState) -> None:
        """See `training.Callback`."""

    def on_step(self, state: LoopState) -> None:
        """See `training.Callback`."""

    def on_epoch(self, state: LoopState) -> None:
        """See `training.Callback`."""

    def on_end(self, state: LoopState) -> None:
        """See `training.Callback`."""


class Console(Quiet):
    """Progress with rate and time left, and a line per epoch.

    Args:
        what: what is being trained, for the text.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._progress: Progress | None = None

    def on_start(self, state: LoopState) -> None:
        """Start counting."""
        self._progress = Progress(state.num_steps, self._what, "step")
        self._progress.update(state.steps_done)  # a resumed run starts where it was

    def on_step(self, state: LoopState) -> None:
        """Count on."""
        if self._progress is not None:
            self._progress.update()

    def on_epoch(self, state: LoopState) -> None:
        """Say how the epoch went."""
        last = state.history[-1]
        logger.info(
            "%s: epoch %d, training loss %.4f, validation loss %.4f",
            self._what, last["epoch"], last["train_loss"], last["validation_loss"],
        )  # fmt: skip

    def on_end(self, state: LoopState) -> None:
        """Close the line."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


class EarlyStopping(Quiet):
    """Keep the weights of the epoch with the lowest validation loss; stop after `patience` epochs without a better one.

    Args:
        patience: epochs.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_epoch(self, state: LoopState) -> None:
        """Remember a better epoch, or stop."""
        losses = [record["validation_loss"] for record in state.history]
        if math.isnan(losses[-1]):
            if len(losses) == 1:
                logger.warning("no validation labels: all epochs are trained and the last one's weights kept")
            return
        if losses[-1] < state.best_loss:
            state.best_loss = losses[-1]
            state.best = {name: value.clone() for name, value in state.weights().items()}
        elif len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            state.stop = True

    def on_end(self, state: LoopState) -> None:
        """Bring the best epoch's weights back."""
        if state.best:
            state.load_weights(state.best)


class Checkpoints(Quiet):
    """Save the whole run now and then and at its end, and go on from a saved one.

    A resumed run ends with the weights that an uninterrupted one would have. The file is safetensors: weights, the
    optimiser's moments, the state of the random numbers; counters and history stand in its metadata.

    Args:
        path: the checkpoint's file.
        fingerprint: what this run is made of (settings, seed, hash of the data); a checkpoint made of something else is
            refused.
        every_s: seconds between two checkpoints.
    """

    def __init__(self, path: Path, *, fingerprint: dict[str, Any], every_s: float) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._every_s = every_s
        self._last = time.monotonic()

    def on_start(self, state: LoopState) -> None:
        """Go on from the file, where there is one.

        Raises:
            ConfigError: the checkpoint is of another configuration.
            StorageError: the file cannot be read.
        """
        self._last = time.monotonic()
        if self._path.exists():
            self._restore(state)
            logger.info("resumed at epoch %d, step %d of %s", state.epoch + 1, state.step, self._path.name)

    def on_step(self, state: LoopState) -> None:
        """Save when it is time."""
        self._save_when_due(state)

    def on_epoch(self, state: LoopState) -> None:
        """Save when it is time."""
        self._save_when_due(state)

    def on_end(self, state: LoopState) -> None:
        """Keep the finished run too: a fit of several members that is stopped later does not train this one again."""
        self._save(state)

    def _save_when_due(self, state: LoopState) -> None:
        if time.monotonic() - self._last >= self._every_s:
            self._save(state)

    def _save(self, state: LoopState) -> None:
        tensors = {f"weights.{name}": value for name, value in state.weights().items()}
        tensors |= {f"best.{name}": value for name, value in state.best.items()}
        for number, moments in state.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors["random"] = torch.get_rng_state()
        counters = {
            "epoch": state.epoch, "step": state.step, "steps_done": state.steps_done, "loss_sum": state.loss_sum,
            "history": state.history, "best_loss": state.best_loss, "stop": state.stop,
        }  # fmt: skip
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        metadata = {"counters": json.dumps(counters), "fingerprint": json.dumps(self._fingerprint, sort_keys=True)}
        try:
            save_file(
                {name: value.detach().contiguous().clone() for name, value in tensors.items()}, temporary, metadata
            )
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._last = time.monotonic()

    def _restore(self, state: LoopState) -> None:
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise StorageError(
                f"checkpoint {self._path} cannot be read ({error}); remove it to start afresh."
            ) from None
        refuse_other_run(json.loads(metadata.get("fingerprint", "{}")), self._fingerprint, self._path)
        for name, value in json.loads(metadata["counters"]).items():
            setattr(state, name, value)
        state.load_weights(under(tensors, "weights."))
        state.best = under(tensors, "best.")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in under(tensors, "optimiser.").items():
            number, moment = name.split(".", 1)
            moments.setdefault(int(number), {})[moment] = value
        groups = state.optimiser.state_dict()["param_groups"]
        state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        torch.set_rng_state(tensors["random"])


def refuse_other_run(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that is made of something else, by the names of what differs.

    Raises:
        ConfigError: `found` is not `expected`.
    """
    differing = [
        f"{name}: checkpoint {found.get(name)!r}, now {expected.get(name)!r}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise ConfigError(
            f"checkpoint {path} is from another configuration ({'; '.join(differing)}). Put the configuration back to "
            "go on from it, or remove the file to start afresh."
        )
