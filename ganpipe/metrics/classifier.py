"""How well a classifier tells generated from real images, from their features: float arrays N×d and M×d."""

import numpy as np

from ganpipe.metrics.kid import checked_features

# Principal components that the classifier sees, and folds of its cross-validation.
COMPONENTS, FOLDS = 64, 5
# Components with less than this share of the largest variance are rounding errors.
LEAST_VARIANCE = 1e-10


def c2st_auc(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    """Return the area under the ROC curve of a classifier on images that it was not fitted to.

    The classifier is logistic, on whitened principal components. In each of five folds both are fitted to
    four fifths of the rows and tested on the rest (a two-sample test after Lopez-Paz & Oquab 2017). 0.5: it
    cannot tell the sets apart; 1: it always can. Slightly below 0.5 is chance; far below, fake images are
    copies: the classifier was fitted to their originals, which have the other label.
    """
    from scipy.linalg import eigh
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    real, fake = checked_features(real, fake)
    rows = np.concatenate([real, fake])
    if (rows == rows[0]).all():
        return 0.5
    rows -= rows.mean(0)
    if rows.shape[1] > len(rows):
        # The same rows in coordinates of the subspace that they span.
        rows = np.ascontiguousarray(np.asarray(np.linalg.qr(rows.T, mode="r")).T)
    labels = np.repeat([0, 1], [len(real), len(fake)])
    folds = StratifiedKFold(min(FOLDS, len(real), len(fake)), shuffle=True, random_state=seed % 2**32)
    products, areas = rows.T @ rows, []
    for train, test in folds.split(rows, labels):
        tested = rows[test]
        # Sums over the training rows are those over all rows, 0 for the rows themselves, minus the tested.
        mean = -tested.sum(0) / len(train)
        covariance = (products - tested.T @ tested) / (len(train) - 1)
        covariance -= np.outer(mean, mean) * (len(train) / (len(train) - 1))
        count = min(COMPONENTS, len(train) - 1, rows.shape[1])
        variances, components = eigh(covariance, subset_by_index=(rows.shape[1] - count, rows.shape[1] - 1))
        varied = variances > LEAST_VARIANCE * variances[-1]
        if not varied.any():
            areas.append(0.5)  # all training rows are equal
            continue
        components = components[:, varied] / np.sqrt(variances[varied])
        whitened = rows @ components - mean @ components
        classifier = LogisticRegression(max_iter=1000).fit(whitened[train], labels[train])
        areas.append(roc_auc_score(labels[test], classifier.decision_function(whitened[test])))
    return float(np.mean(areas))
