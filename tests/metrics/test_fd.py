"""The Fréchet distance, against its closed form, torchmetrics and torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg
import torch
from feature_sets import BAD_SETS, FAKE, REAL, Identity, gaussian, pixels
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from ganpipe.common.errors import UserError
from ganpipe.metrics import fd as fd_module
from ganpipe.metrics.fd import Normal, fd


def sqrtm_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance as the papers write it, by way of a matrix root."""
    c1, c2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    shift = real.mean(0) - fake.mean(0)
    return float(shift @ shift + np.trace(c1 + c2 - 2 * np.real(scipy.linalg.sqrtm(c1 @ c2))))


@pytest.mark.parametrize(
    ("real", "fake"),
    [(REAL, FAKE), (pixels(slice(0, 400)), pixels(slice(2500, 2800)))],
    ids=["normal", "digits"],
)
def test_fd_is_the_closed_form(real: np.ndarray, fake: np.ndarray) -> None:
    """If it fails, FD is another distance than the one in papers."""
    assert fd(real, fake) == pytest.approx(sqrtm_distance(real, fake), rel=1e-6)


def test_fd_is_that_of_torchmetrics() -> None:
    """If it fails, FD differs from a library that others use."""
    theirs = FrechetInceptionDistance(feature=Identity(7)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(REAL), real=True)
    theirs.update(torch.from_numpy(FAKE), real=False)
    assert fd(REAL, FAKE) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_fd_is_that_of_torch_fidelity() -> None:
    """If it fails, FD differs from another library that others use."""
    sets = (fid_features_to_statistics(torch.from_numpy(rows)) for rows in (REAL, FAKE))
    theirs = fid_statistics_to_metric(*sets, verbose=False)["frechet_inception_distance"]
    assert fd(REAL, FAKE) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("dimensions", [3, 7, 30])
@pytest.mark.parametrize("rows", [4, 16, 1024])
def test_a_normal_distribution_in_parts_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch, rows: int, dimensions: int
) -> None:
    """If it fails, FD depends on the size of the parts, or the memory grows with the rows."""
    monkeypatch.setattr(fd_module, "ROWS", rows)
    points = gaussian(50, dimensions, 3, 2.0)
    normal = Normal(dimensions).add(points[:11]).add(points[11:])
    assert normal.count == 50 and normal.mean == pytest.approx(points.mean(0))
    assert normal.root.T @ normal.root / 49 == pytest.approx(
        np.cov(points, rowvar=False), rel=1e-9, abs=1e-12
    )
    assert len(normal.root) <= dimensions


def test_fd_is_exact_below_full_rank() -> None:
    """If it fails, FD is wrong with fewer images than features, the usual case.

    The same points, turned into a space of more dimensions than points, are as far apart as before; in the
    small space the closed form holds, in the large one the covariances are singular.
    """
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((100, 7)))[0].T
    assert len(REAL) < turn.shape[1]
    assert fd(REAL @ turn, FAKE @ turn) == pytest.approx(sqrtm_distance(REAL, FAKE), rel=1e-9)
    assert fd(REAL @ turn, (FAKE @ turn)[:5]) == pytest.approx(fd(REAL, FAKE[:5]), rel=1e-9)


def test_fd_by_hand() -> None:
    """Means 0 and 4, variances 2 and 8: 16 + (√8 - √2)². Biased variances would give 16 + 1."""
    assert fd(np.array([[-1.0], [1.0]]), np.array([[2.0], [6.0]])) == pytest.approx(18)


@pytest.mark.parametrize("dimensions", [5, 200])
def test_fd_of_a_set_to_itself_is_zero(dimensions: int) -> None:
    """If it fails, a perfect copy seems to differ, as with an epsilon on the diagonal."""
    rows = gaussian(50, dimensions, 3)
    assert 0 <= fd(rows, rows[::-1]) < 1e-10 * (rows**2).sum()


def test_fd_does_not_depend_on_the_order() -> None:
    """If it fails, FD depends on how files are sorted."""
    shuffled = FAKE[np.random.default_rng(0).permutation(len(FAKE))]
    assert fd(REAL, shuffled) == pytest.approx(fd(REAL, FAKE), rel=1e-10)


def test_float32_features_are_summed_in_float64() -> None:
    """If it fails, the numbers depend on the precision in which features are stored."""
    real, fake = REAL.astype(np.float32) + 1000, FAKE.astype(np.float32) + 1000
    exact = sqrtm_distance(real.astype(np.float64), fake.astype(np.float64))
    assert fd(real, fake) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("real", "fake", "words"), BAD_SETS)
def test_bad_features_are_reported_in_one_line(real: np.ndarray, fake: np.ndarray, words: str) -> None:
    """If it fails, NaN passes for a score, or the user meets a traceback of numpy."""
    with pytest.raises(UserError, match=words) as error:
        fd(real, fake)
    assert "\n" not in str(error.value)
