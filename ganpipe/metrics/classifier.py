"""How well a classifier tells generated from real images, from their features: float arrays N×d and M×d."""

import numpy as np

from ganpipe.metrics.kid import checked

# Principal components that the classifier sees, and folds of its cross-validation.
COMPONENTS, FOLDS = 64, 5
# Share of the largest variance below which a component is a rounding error.
LEAST_VARIANCE = 1e-10


def c2st_auc(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    """Say how well a classifier tells fake from real: the area under its ROC curve on images it has not seen.

    A logistic classifier on whitened principal components; these and it are fitted to four fifths of both
    sets and tried on the last, in turn (a two-sample test after Lopez-Paz & Oquab 2017). 0.5: it cannot tell
    them apart; 1: always. A little below 0.5 is chance; far below, fake ones are copies: their twins,
    which the classifier was fitted to, bear the other label.
    """
    from scipy.linalg import eigh
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    real, fake = checked(real, fake)
    rows = np.concatenate([real, fake])
    if (rows == rows[0]).all():
        return 0.5
    rows -= rows.mean(0)
    if rows.shape[1] > len(rows):
        # The same rows in coordinates of the space that they span.
        rows = np.ascontiguousarray(np.asarray(np.linalg.qr(rows.T, mode="r")).T)
    labels = np.repeat([0, 1], [len(real), len(fake)])
    folds = min(FOLDS, len(real), len(fake))
    trials = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    squares, areas = rows.T @ rows, []
    for fit, test in trials.split(rows, labels):
        tried = rows[test]
        # What the rows of the trial leave of all rows' sums are those of the rows to fit to.
        mean = -tried.sum(0) / len(fit)
        covariance = (squares - tried.T @ tried) / (len(fit) - 1)
        covariance -= np.outer(mean, mean) * (len(fit) / (len(fit) - 1))
        most = min(COMPONENTS, len(fit) - 1, rows.shape[1])
        variances, components = eigh(covariance, subset_by_index=(rows.shape[1] - most, rows.shape[1] - 1))
        varied = variances > LEAST_VARIANCE * variances[-1]
        if not varied.any():
            areas.append(0.5)  # All that it could be fitted to are alike.
            continue
        components = components[:, varied] / np.sqrt(variances[varied])
        whitened = rows @ components - mean @ components
        classifier = LogisticRegression(max_iter=1000).fit(whitened[fit], labels[fit])
        areas.append(roc_auc_score(labels[test], classifier.decision_function(whitened[test])))
    return float(np.mean(areas))
