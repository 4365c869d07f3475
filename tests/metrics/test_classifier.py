"""The classifier of real against generated images, against scikit-learn's."""

import numpy as np
import pytest
from conftest import digits
from feature_sets import BAD_SETS, pixels
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from ganpipe.common.errors import UserError
from ganpipe.metrics import classifier


def test_a_classifier_tells_sets_apart_as_far_as_they_differ() -> None:
    """If it fails, the classifier is tested on what it was fitted to, and tells equal distributions apart."""
    real, same, other = (pixels(slice(i, 5000, 20)) for i in (0, 7, 13))
    assert classifier.c2st_auc(real, same, 0) == pytest.approx(0.5, abs=0.08)
    assert classifier.c2st_auc(real, other + 0.1, 0) > 0.75
    assert classifier.c2st_auc(real, other + 5, 0) == 1
    wide = np.random.default_rng(0).standard_normal((2, 100, 400))
    assert classifier.c2st_auc(wide[0], wide[1], 0) == pytest.approx(0.5, abs=0.15)
    assert classifier.c2st_auc(real, other, 1) == classifier.c2st_auc(real, other, 1)


@pytest.mark.parametrize("count", [20, 100, 400])
def test_the_classifier_is_scikit_learns(count: int) -> None:
    """If it fails, the components are fitted to other rows than the training rows of a fold."""
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


def test_a_fold_of_equal_images_has_no_effect() -> None:
    """If it fails, a fold whose training rows are all equal ends in a traceback."""
    alike = np.zeros((2, 3))
    assert classifier.c2st_auc(alike, np.array([[0, 0, 0], [1, 1, 1]]), 0) in (0.25, 0.5, 0.75)


@pytest.mark.parametrize(("real", "fake", "words"), BAD_SETS)
def test_bad_features_are_reported_in_one_line(real: np.ndarray, fake: np.ndarray, words: str) -> None:
    """If it fails, NaN passes for a score, or the user meets a traceback of numpy."""
    with pytest.raises(UserError, match=words) as error:
        classifier.c2st_auc(real, fake, 0)
    assert "\n" not in str(error.value)
