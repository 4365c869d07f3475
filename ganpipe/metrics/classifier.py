"""How well a classifier tells generated from real images, from their features: float arrays N×d and M×d."""

import numpy as np

from ganpipe.metrics.kid import check_features

COMPONENTS, FOLDS = 64, 5  # principal components that the classifier sees, and folds of its cross-validation
LEAST_VARIANCE = 1e-10  # components with less than this share of the largest variance are rounding errors


def c2st_auc(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    """Return the area under the ROC curve of a classifier on images that it was not fitted to.

    The classifier is logistic, on whitened principal components. In each of five folds both are fitted to
    four fifths of the rows and tested on the rest (a two-sample test after Lopez-Paz & Oquab 2017). 0.5: it
    cannot tell the sets apart; 1: it always can. Slightly below 0.5 is chance; far below, fake images are
    copies: the classifier was fitted to their originals, which have the other label.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    check_features(real, fake)
    rows = np.concatenate([real, fake]).astype(np.float64)
    labels = np.repeat([0, 1], [len(real), len(fake)])
    folds = StratifiedKFold(min(FOLDS, len(real), len(fake)), shuffle=True, random_state=seed % 2**32)
    areas = []
    for train, test in folds.split(rows, labels):
        if (rows[train] == rows[train[0]]).all():
            areas.append(0.5)
            continue
        count = min(COMPONENTS, len(train) - 1, rows.shape[1])
        solver = "arpack" if count < rows.shape[1] else "full"  # fast, but not for all components
        pca = PCA(count, whiten=True, svd_solver=solver, random_state=0).fit(rows[train])
        varied = pca.explained_variance_ > LEAST_VARIANCE * pca.explained_variance_[0]
        whitened = pca.transform(rows)[:, varied]
        classifier = LogisticRegression(max_iter=1000).fit(whitened[train], labels[train])
        areas.append(roc_auc_score(labels[test], classifier.decision_function(whitened[test])))
    return float(np.mean(areas))
