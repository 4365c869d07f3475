"""The kernel distances, KID against torchmetrics, torch-fidelity and values computed by hand."""

import numpy as np
import pytest
import torch
from feature_sets import BAD_SETS, FAKE, REAL, Identity
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.kid import KernelInceptionDistance

from ganpipe.common.errors import UserError
from ganpipe.metrics.kid import _draw, gaussian_mmd, kid, products


def test_kid_is_that_of_torchmetrics() -> None:
    """If it fails, KID differs from a library that others use; subsets of all images exclude chance."""
    real, fake = REAL[:45], FAKE
    theirs = KernelInceptionDistance(feature=Identity(7), subsets=1, subset_size=45).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(fake), real=False)
    assert kid(real, fake, 1, 45, 0)[0] == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_kid_is_that_of_torch_fidelity_on_the_same_subsets() -> None:
    """If it fails, the mean over the subsets or the kernel differs from another library."""
    drawn = [
        [_draw(len(x), 20, 3, f"kid/{s}", i) for s, x in (("real", REAL), ("fake", FAKE))] for i in range(9)
    ]
    theirs = [kernel_mmd(FAKE[f], REAL[r]) for r, f in drawn]
    assert kid(REAL, FAKE, 9, 20, 3) == pytest.approx((np.mean(theirs), np.std(theirs)), rel=1e-9)


def test_products_that_are_known_change_no_number() -> None:
    """If it fails, an image's products are taken for another image's."""
    known = products(REAL, FAKE)
    assert kid(REAL, FAKE, 9, 20, 3, known) == pytest.approx(kid(REAL, FAKE, 9, 20, 3), rel=1e-9)
    assert gaussian_mmd(REAL, FAKE, known) == gaussian_mmd(REAL, FAKE)


def test_kid_by_hand() -> None:
    """Within both sets the kernel of the two different points is 1; across, (1 + 1 + 1 + 27) / 4."""
    mean, sd = kid(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]), 3, 2, 0)
    assert mean == pytest.approx(1 + 1 - 2 * 7.5)
    assert sd == pytest.approx(0, abs=1e-12)


def test_kid_subsets_are_drawn_without_replacement() -> None:
    """If it fails, images repeat in a subset, which biases the kernel upwards."""
    mean, sd = kid(REAL[:45], FAKE, 5, 45, 0)
    assert sd == pytest.approx(0, abs=1e-12)
    assert mean == pytest.approx(kid(REAL[:45], FAKE, 1, 45, 7)[0])


def test_kid_of_subsets_is_unbiased_and_seeded() -> None:
    """If it fails, small subsets have another mean than the whole sets, or runs with one seed differ."""
    whole = kid(REAL[:45], FAKE, 1, 45, 0)[0]
    mean, sd = kid(REAL[:45], FAKE, 800, 10, 0)
    assert abs(mean - whole) < 4 * sd / 800**0.5
    assert sd > 0
    few = kid(REAL, FAKE, 4, 10, 0)
    assert few == kid(REAL, FAKE, 4, 10, 0)
    assert few != kid(REAL, FAKE, 4, 10, 1)


def test_subsets_are_no_larger_than_the_sets() -> None:
    """If it fails, images are drawn twice."""
    for real, fake in ((REAL, FAKE[:5]), (FAKE[:5], REAL)):
        with pytest.raises(UserError, match="kid_subset_size: found 6, expected 2 to 5"):
            kid(real, fake, 1, 6, 0)


@pytest.mark.parametrize(("real", "fake", "words"), BAD_SETS)
def test_bad_features_are_reported_in_one_line(real: np.ndarray, fake: np.ndarray, words: str) -> None:
    """If it fails, NaN passes for a score, or the user meets a traceback of numpy."""
    with pytest.raises(UserError, match=words) as error:
        kid(real, fake, 2, 2, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=words):
        gaussian_mmd(real, fake)


def test_the_gaussian_kernel_is_that_of_torch_fidelity() -> None:
    """If it fails, the number is another one than its docstring says."""
    real = REAL[:45]
    sd = np.median([np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]])
    theirs = kernel_mmd(real, FAKE, kid_kernel="rbf", kid_kernel_rbf_sigma=sd)
    assert gaussian_mmd(real, FAKE) == pytest.approx(theirs, rel=1e-9)
    assert gaussian_mmd(real.astype(np.float32), FAKE.astype(np.float32)) == pytest.approx(theirs, rel=1e-4)


def test_equal_real_images_have_a_distance() -> None:
    """If it fails, a warning of numpy and a NaN precede the line that says what is wrong."""
    equal = np.ones((5, 3))
    assert gaussian_mmd(equal, equal) == 0 and gaussian_mmd(equal, equal + 9) == pytest.approx(2)


def test_sets_of_one_distribution_have_no_distance_on_average() -> None:
    """If it fails, the floor depends on the number of images."""
    random = np.random.default_rng(0)
    values = [gaussian_mmd(*random.standard_normal((2, 20, 5))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 400**0.5


def test_shortened_features_are_further_away_than_longer_ones() -> None:
    """If it fails, images in noise, whose features are short, rank before others, as they do by KID."""
    random = np.random.default_rng(0)
    real, fake = random.gamma(0.3, 1, (2, 300, 64))  # few large values, as of real images
    assert gaussian_mmd(real, 1.5 * fake) < 0.8 * gaussian_mmd(real, 0.4 * fake)
    assert kid(real, 1.5 * fake, 5, 100, 0)[0] > kid(real, 0.4 * fake, 5, 100, 0)[0]
