"""Routers on disk: `config.json` and `weights.safetensors`, nothing that could run code when it is loaded.

The configuration names the weights file's sha256, so a mixed-up or damaged pair is refused.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arms_model.calibration import Calibration
from arms_model.encoders.build import build_trainable
from arms_model.errors import DataError, StorageError
from arms_model.memory import Kernel, Memory
from arms_model.router import Router, RouterConfig, build_network
from arms_model.settings import parse

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
MEMORY_ARRAYS = ("keys", "residuals", "labels", "means")


def save_router(router: Router, folder: Path) -> None:
    """Write `router` into `folder`, which exists and is the caller's to publish.

    The same router gives the same bytes.
    """
    weights_path = folder / WEIGHTS
    save_file({name: value.contiguous() for name, value in sorted(_tensors(router).items())}, weights_path)
    config = {
        "format": FORMAT,
        "weights_sha256": _sha256(weights_path),
        "calibration_log_loss": [
            finite(router.calibration.log_loss_before),
            finite(router.calibration.log_loss_after),
        ],
        "memory": None if router.memory is None else router.memory.described(),
        "router": dataclasses.asdict(router.config),
    }
    # Keys stay in their order: that of the encoders is the order in which their vectors stand side by side.
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_router(folder: Path) -> Router:
    """Read a router back.

    Raises:
        DataError: no router there, or one of another format.
        StorageError: the weights are not those that the configuration names, or do not fit it.
    """
    config, weights = _read(folder)
    try:
        router = _built(config, weights, folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a renamed tensor, a config without a part
        raise StorageError(
            f"{folder}: {CONFIG} and {WEIGHTS} do not make a router ({type(error).__name__}: {error}); train again, or "
            "restore both (`dvc checkout`)."
        ) from None
    _check_tensors(router, weights, folder)
    return router


def _built(config: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Router:
    router_config = parse(RouterConfig, config["router"], f"{folder / CONFIG}: router")
    members = []
    for number in range(router_config.num_members):
        member = build_network(router_config)
        _load(member, under(weights, f"members.{number}."), folder)
        members.append(member.eval())
    modules = {}
    for name in router_config.trainable_encoders:
        settings = {**router_config.question_encoders, **router_config.picture_encoders}[name]
        module = build_trainable(settings).module
        _load(module, under(weights, f"encoders.{name}."), folder)
        modules[name] = module.eval()
    before, after = config["calibration_log_loss"]
    return Router(
        config=router_config,
        members=members,
        profile_vectors=weights["profile_vectors"],
        encoder_modules=modules,
        memory=_memory(config["memory"], weights),
        calibration=Calibration(
            scale=weights["calibration.scale"].numpy(),
            bias=weights["calibration.bias"].numpy(),
            is_own=weights["calibration.is_own"].numpy(),
            log_loss_before=np.nan if before is None else before,
            log_loss_after=np.nan if after is None else after,
        ),
    )


def _check_tensors(router: Router, weights: dict[str, Tensor], folder: Path) -> None:
    """Refuse tensors that the configuration has no use for, shapes that only seem to fit, and numbers that are none."""
    if strangers := sorted(set(weights) - set(_tensors(router))):
        raise StorageError(
            f"{folder / WEIGHTS} holds tensors that its {CONFIG} knows nothing of ({', '.join(strangers[:5])}); "
            "train again, or restore both (`dvc checkout`)."
        )
    num_vlms, width = len(router.config.vlms), router.config.profile_width
    shapes: dict[str, tuple[int, ...]] = {
        "profile_vectors": (num_vlms, width),
        **{f"calibration.{name}": (num_vlms,) for name in ("scale", "bias", "is_own")},
    }
    if router.memory is not None:
        rows = len(router.memory.keys)
        shapes |= {f"memory.{name}": (rows, num_vlms) for name in ("residuals", "labels")}
        shapes["memory.means"] = (num_vlms,)
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise StorageError(
                f"{folder / WEIGHTS}: tensor '{name}' is {tuple(weights[name].shape)}, expected {shape} for "
                f"{num_vlms} VLMs; train again, or restore both (`dvc checkout`)."
            )
    for name, values in weights.items():  # residuals and labels are NaN where a VLM was not asked
        if name not in ("memory.residuals", "memory.labels") and not bool(torch.isfinite(values).all()):
            raise StorageError(f"{folder / WEIGHTS}: tensor '{name}' holds a number that is not finite; train again.")


def _tensors(router: Router) -> dict[str, Tensor]:
    tensors = {"profile_vectors": router.profile_vectors.detach()}
    for number, member in enumerate(router.members):
        tensors |= {f"members.{number}.{name}": value for name, value in member.state_dict().items()}
    for encoder, module in router.encoder_modules.items():
        tensors |= {f"encoders.{encoder}.{name}": value for name, value in module.state_dict().items()}
    if router.memory is not None:
        for name in MEMORY_ARRAYS:
            tensors[f"memory.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(router.memory, name)))
    for name in ("scale", "bias", "is_own"):
        tensors[f"calibration.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(router.calibration, name)))
    return tensors


def _memory(described: dict[str, Any] | None, weights: dict[str, Tensor]) -> Memory | None:
    if described is None:
        return None
    return Memory(
        **{name: weights[f"memory.{name}"].numpy() for name in MEMORY_ARRAYS},
        residual_kernel=Kernel(**described["residual_kernel"]),
        label_kernel=Kernel(**described["label_kernel"]),
        network_weight=described["network_weight"],
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise DataError(f"{folder} holds a router of format {config['format']}, expected {FORMAT}; train it again.")
        found = _sha256(folder / WEIGHTS)
        if found != config["weights_sha256"]:
            raise StorageError(
                f"{folder / WEIGHTS} has sha256 {found[:12]}..., {CONFIG} names {config['weights_sha256'][:12]}...; "
                "the pair is mixed up or damaged: train again, or restore both (`dvc checkout`)."
            )
        return config, load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise DataError(
            f"no router in {folder}: {Path(error.filename).name} is missing; run its train stage."
        ) from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(f"{folder} holds no readable router ({error}); train again, or `dvc checkout`.") from None


def _load(module: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise StorageError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {error}") from None


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it (NaN, infinity)."""
    return float(value) if np.isfinite(value) else None
