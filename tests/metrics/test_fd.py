"""The metrics, against independent references: closed forms, scipy, torchmetrics and plain loops."""

from collections.abc import Callable

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch
from conftest import digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ganpipe.common.errors import UserError
from ganpipe.metrics import classifier, manifold
from ganpipe.metrics import fd as fd_part
from ganpipe.metrics.fd import Normal, fd
from ganpipe.metrics.kid import _draw, kid


def gaussian(count: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw correlated normal features, count×dimensions."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99 + seed).standard_normal((dimensions, dimensions)) / dimensions**0.5
    return random.standard_normal((count, dimensions)) @ mixing + shift


def pixels(rows: slice) -> np.ndarray:
    """Digits as features: 25 mean brightnesses of 4×4 pixels each, without the border, in [0, 1]."""
    return digits()[rows, 4:24, 4:24].reshape(-1, 5, 4, 5, 4).mean(axis=(2, 4)).reshape(-1, 25) / 255


def overlap(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """Span both sets' balls and compare them."""
    return manifold.overlap(manifold.balls(real, k), manifold.balls(fake, k, "generated"))


REAL, FAKE = gaussian(60, 7, 0), gaussian(45, 7, 1, 0.3)


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
    """FD would be another distance than the one that papers compare."""
    assert fd(real, fake) == pytest.approx(sqrtm_distance(real, fake), rel=1e-6)


def test_fd_is_that_of_torchmetrics() -> None:
    """FD would disagree with the library that others use."""
    theirs = FrechetInceptionDistance(feature=Identity(7)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(REAL), real=True)
    theirs.update(torch.from_numpy(FAKE), real=False)
    assert fd(REAL, FAKE) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_fd_is_that_of_torch_fidelity() -> None:
    """FD would disagree with the other library that others use."""
    sets = (fid_features_to_statistics(torch.from_numpy(rows)) for rows in (REAL, FAKE))
    theirs = fid_statistics_to_metric(*sets, verbose=False)["frechet_inception_distance"]
    assert fd(REAL, FAKE) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("dimensions", [3, 7, 30])
@pytest.mark.parametrize("rows", [4, 16, 1024])
def test_a_normal_distribution_in_parts_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch, rows: int, dimensions: int
) -> None:
    """FD would depend on the size of the parts, or keep every row; mean and covariance must be exact."""
    monkeypatch.setattr(fd_part, "ROWS", rows)
    points = gaussian(50, dimensions, 3, 2.0)
    found = Normal(dimensions).add(points[:11]).add(points[11:])
    assert found.count == 50 and found.mean == pytest.approx(points.mean(0))
    assert found.root.T @ found.root / 49 == pytest.approx(np.cov(points, rowvar=False), rel=1e-9, abs=1e-12)
    assert len(found.root) <= dimensions


def test_fd_is_exact_below_full_rank() -> None:
    """With fewer images than features, the usual case, FD would depend on how features are laid out.

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
    """A perfect copy would seem to differ; with an epsilon on the diagonal it does."""
    rows = gaussian(50, dimensions, 3)
    assert 0 <= fd(rows, rows[::-1]) < 1e-10 * (rows**2).sum()


def test_kid_is_that_of_torchmetrics() -> None:
    """KID would disagree with the library that others use; subsets of all images leave nothing to chance."""
    real, fake = REAL[:45], FAKE
    theirs = KernelInceptionDistance(feature=Identity(7), subsets=1, subset_size=45).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(fake), real=False)
    assert kid(real, fake, 1, 45, 0)[0] == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_kid_is_that_of_torch_fidelity_on_the_same_subsets() -> None:
    """The subsets' mean would be of other subsets, or of another kernel, than that of the other library."""
    drawn = [
        [_draw(len(x), 20, 3, f"kid/{s}", i) for s, x in (("real", REAL), ("fake", FAKE))] for i in range(9)
    ]
    theirs = [kernel_mmd(FAKE[f], REAL[r]) for r, f in drawn]
    assert kid(REAL, FAKE, 9, 20, 3) == pytest.approx((np.mean(theirs), np.std(theirs)), rel=1e-9)


def test_kid_by_hand() -> None:
    """Within both sets the kernel of the two different points is 1; across, (1 + 1 + 1 + 27) / 4."""
    mean, sd = kid(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]), 3, 2, 0)
    assert mean == pytest.approx(1 + 1 - 2 * 7.5)
    assert sd == pytest.approx(0, abs=1e-12)


def test_kid_subsets_are_drawn_without_replacement() -> None:
    """With repeats, subsets of all images would differ from each other and the kernel be biased upwards."""
    mean, sd = kid(REAL[:45], FAKE, 5, 45, 0)
    assert sd == pytest.approx(0, abs=1e-12)
    assert mean == pytest.approx(kid(REAL[:45], FAKE, 1, 45, 7)[0])


def test_kid_of_subsets_is_unbiased_and_seeded() -> None:
    """Small subsets would have another mean than the whole, or runs with one seed differ."""
    whole = kid(REAL[:45], FAKE, 1, 45, 0)[0]
    mean, sd = kid(REAL[:45], FAKE, 800, 10, 0)
    assert abs(mean - whole) < 4 * sd / 800**0.5
    assert sd > 0
    few = kid(REAL, FAKE, 4, 10, 0)
    assert few == kid(REAL, FAKE, 4, 10, 0)
    assert few != kid(REAL, FAKE, 4, 10, 1)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of each of `a` to each of `b`, by subtraction."""
    return np.array([[np.linalg.norm(x - y) for y in b] for x in a])


def inside(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Whether each point lies in each centre's ball, points×centres."""
    radii = np.array([sorted(row)[k] for row in distances(centres, centres)])
    return distances(points, centres) <= radii


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 200, manifold.BLOCK])
def test_manifold_metrics_are_the_plain_loops(monkeypatch: pytest.MonkeyPatch, block: int, k: int) -> None:
    """Precision, recall or coverage would be off: by one neighbour, by swapped sets, or at a block's edge."""
    monkeypatch.setattr(manifold, "BLOCK", block)
    found = overlap(REAL, FAKE, k)
    assert found["precision"] == inside(FAKE, REAL, k).any(1).mean()
    assert found["recall"] == inside(REAL, FAKE, k).any(1).mean()
    assert found["density"] == pytest.approx(inside(FAKE, REAL, k).sum() / (k * len(FAKE)))
    assert found["coverage"] == inside(FAKE, REAL, k).any(0).mean()
    assert 0 < found["precision"] != found["recall"] < 1


@pytest.mark.parametrize("k", [1, 5])
def test_manifold_metrics_are_those_of_prdc(k: int) -> None:
    """The four numbers would disagree with the authors' own code."""
    real, fake = pixels(slice(0, 300)), pixels(slice(1000, 3000, 8))
    assert overlap(real, fake, k) == pytest.approx(prdc.compute_prdc(real, fake, k), rel=1e-12)


def test_manifold_metrics_tell_collapse_from_noise() -> None:
    """One mode must show as lost recall and coverage with precision kept, far outliers as lost precision."""
    real, other = pixels(slice(0, 5000, 20)), pixels(slice(7, 5000, 20))
    collapsed = np.repeat(other[:5], 50, axis=0) + np.random.default_rng(0).normal(0, 1e-3, real.shape)
    found = overlap(real, collapsed, 5)
    assert found["recall"] < 0.05 and found["coverage"] < 0.2
    assert overlap(real, other, 5)["coverage"] > 0.9
    assert set(overlap(real, other + 5, 5).values()) == {0.0}


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_copies_are_covered_even_by_balls_of_no_radius(scale: float) -> None:
    """Rounding, which differs between batches, would decide the numbers where images coincide."""
    jitter = 1 + 1e-7 * np.random.default_rng(0).standard_normal((2, 40, 7))
    alike, again = gaussian(1, 7, 0) * scale * jitter
    for found in (overlap(alike, again, 3), overlap(REAL, REAL, 3)):
        assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_a_classifier_tells_sets_apart_as_far_as_they_differ() -> None:
    """Fitted on what it is tried on, it would tell even equal distributions apart."""
    real, same, other = (pixels(slice(i, 5000, 20)) for i in (0, 7, 13))
    assert classifier.c2st_auc(real, same, 0) == pytest.approx(0.5, abs=0.08)
    assert classifier.c2st_auc(real, other + 0.1, 0) > 0.75
    assert classifier.c2st_auc(real, other + 5, 0) == 1
    wide = np.random.default_rng(0).standard_normal((2, 100, 400))
    assert classifier.c2st_auc(wide[0], wide[1], 0) == pytest.approx(0.5, abs=0.15)
    assert classifier.c2st_auc(real, other, 1) == classifier.c2st_auc(real, other, 1)


@pytest.mark.parametrize("count", [20, 100, 400])
def test_the_classifier_is_scikit_learns(count: int) -> None:
    """Components of all rows, or of the wrong ones, would let it see what it is tried on."""
    whole = digits().reshape(-1, 784) / 255
    real, fake = whole[:count], whole[1000 : 1000 + 3 * count : 2] * 0.97
    rows, labels = np.concatenate([real, fake]), np.repeat([0, 1], [len(real), len(fake)])
    components = min(classifier.COMPONENTS, 4 * len(rows) // 5 - 1)
    reference = make_pipeline(
        PCA(components, whiten=True, svd_solver="full"), LogisticRegression(max_iter=1000)
    )
    trials = StratifiedKFold(classifier.FOLDS, shuffle=True, random_state=3)
    expected = cross_val_score(reference, rows, labels, scoring="roc_auc", cv=trials).mean()
    assert classifier.c2st_auc(real, fake, 3) == pytest.approx(expected, abs=1e-4)


def test_the_classifier_of_a_few_that_are_alike() -> None:
    """One that differs may be in no fold to fit to: nothing can be learned there, and nothing is to break."""
    alike = np.zeros((2, 3))
    assert classifier.c2st_auc(alike, np.array([[0, 0, 0], [1, 1, 1]]), 0) in (0.25, 0.5, 0.75)


def test_spread_is_the_mean_over_pairs() -> None:
    """Diversity would count each image as a pair with itself."""
    between = distances(FAKE, FAKE)
    assert manifold.balls(FAKE, 1).spread == pytest.approx(between.sum() / (45 * 44))
    assert manifold.balls(np.zeros((4, 3)), 1).spread == 0


def test_order_does_not_count() -> None:
    """A metric would depend on how files are sorted."""
    shuffled = FAKE[np.random.default_rng(0).permutation(len(FAKE))]
    assert fd(REAL, shuffled) == pytest.approx(fd(REAL, FAKE), rel=1e-10)
    assert overlap(REAL, shuffled, 3) == overlap(REAL, FAKE, 3)
    assert manifold.balls(shuffled, 1).spread == pytest.approx(manifold.balls(FAKE, 1).spread, rel=1e-12)


def test_float32_features_are_summed_in_float64() -> None:
    """The numbers would depend on the precision of the features' storage more than on the features."""
    real, fake = REAL.astype(np.float32) + 1000, FAKE.astype(np.float32) + 1000
    exact = sqrtm_distance(real.astype(np.float64), fake.astype(np.float64))
    assert fd(real, fake) == pytest.approx(exact, rel=1e-6)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "fd": fd,
    "kid": lambda real, fake: kid(real, fake, 2, 2, 0),
    "c2st_auc": lambda real, fake: classifier.c2st_auc(real, fake, 0),
}


@pytest.mark.parametrize("metric", METRICS)
def test_bad_features_get_one_clear_line(metric: str) -> None:
    """NaN would pass for a score, or the user meet a traceback from numpy."""
    broken = FAKE.copy()
    broken[[2, 5], 1] = np.nan, np.inf
    for real, fake, words in [
        (REAL, broken, "2 of 45 generated images"),
        (broken, FAKE, "2 of 45 real images"),
        (REAL, FAKE[:1], "at least 2 generated images"),
        (REAL[0], FAKE, "at least 2 real images"),
        (REAL, FAKE[:, :5], "7 features a real image, 5 a generated one"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            METRICS[metric](real, fake)
        assert "\n" not in str(error.value)


def test_too_many_neighbours_or_too_large_subsets() -> None:
    """A ball would reach to a neighbour that does not exist, or images be drawn twice."""
    for few, many in ((REAL, FAKE[:5]), (FAKE[:5], REAL)):
        with pytest.raises(UserError, match=r"evaluate\.neighbours: 5 .* found 5"):
            overlap(few, many, 5)
        with pytest.raises(UserError, match=r"evaluate\.kid_subset_size"):
            kid(few, many, 1, 6, 0)
    assert overlap(REAL, FAKE[:5], 4)["precision"] > 0


class Identity(torch.nn.Module):
    """An extractor for torchmetrics that takes features as images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features
