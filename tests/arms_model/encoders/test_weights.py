import hashlib
from pathlib import Path

import pytest
import torch

from arms_model.encoders.weights import check_sha256, packaged_weights, weights_sha256
from arms_model.errors import ConfigError, StorageError


def test_wrong_checksum_is_refused_with_both_sums(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    check_sha256(tmp_path / "weights", found)
    with pytest.raises(StorageError, match=f"sha256 is {found}, expected {'0' * 64}.*Install its package again"):
        check_sha256(tmp_path / "weights", "0" * 64)


def test_installed_weights_with_another_checksum_are_refused() -> None:
    with pytest.raises(StorageError, match=f"expected {'1' * 64}"):
        packaged_weights("numpy", file_suffix="numpy/__init__.py", sha256="1" * 64, extra="numbers")


def test_package_without_the_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is installed without its file 'nothing\.pth'"):
        packaged_weights("numpy", file_suffix="nothing.pth", sha256="1" * 64, extra="numbers")


def test_weights_sha256_changes_with_any_value_and_with_a_name() -> None:
    def module(value: float) -> torch.nn.Module:
        layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(layer.weight, 0.5)
        torch.nn.init.constant_(layer.bias, 0.0)
        with torch.no_grad():
            layer.weight[1, 1] = value
        return layer

    assert weights_sha256(module(1.0)) == weights_sha256(module(1.0))
    assert weights_sha256(module(1.0)) != weights_sha256(module(1.0000001))
    assert weights_sha256(module(1.0)) != weights_sha256(torch.nn.Sequential(module(1.0)))


def test_weights_sha256_takes_single_numbers_and_half_precision() -> None:
    norm = torch.nn.BatchNorm1d(2).to(torch.bfloat16)  # holds a counter without dimensions
    assert len(weights_sha256(norm)) == 64
