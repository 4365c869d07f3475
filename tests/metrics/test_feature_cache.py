"""The cache of real images' features."""

from pathlib import Path

import numpy as np
import pytest

from ganpipe.metrics.feature_cache import cached


def test_features_are_computed_once_and_only_for_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, numbers are of other images or another network, or damaged files pass for features."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.full((3, 2), len(calls), np.float32)

    assert (cached(tmp_path, ("a", "x"), compute) == 1).all()
    assert (cached(tmp_path, ("a", "x"), compute) == 1).all() and len(calls) == 1
    assert (cached(tmp_path, ("a", "y"), compute) == 2).all()
    for path in (tmp_path / ".ganpipe/features").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-1])
    assert (cached(tmp_path, ("a", "x"), compute) == 3).all()
    assert "damaged, computed again" in capsys.readouterr().err
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert (cached(tmp_path / "copy", ("a", "x"), compute) == 3).all()


def test_no_damaged_byte_passes_for_a_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit would change metrics for good; only in the zip's own fields may it do no harm."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return features

    cached(tmp_path, ("a",), compute)
    (path,) = (tmp_path / ".ganpipe/features").glob("*.npz")
    content = path.read_bytes()
    start = content.index(features.tobytes())
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        before = len(calls)
        assert np.array_equal(cached(tmp_path, ("a",), compute), features)
        assert len(calls) == before + 1 or not start <= position < start + features.nbytes
