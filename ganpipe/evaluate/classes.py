"""How close the generated images of each class are to the training images of that class."""

import json
from pathlib import Path

import numpy as np

from ganpipe.common.classes import read_classes
from ganpipe.common.dataset import Dataset
from ganpipe.common.stages import stage_file
from ganpipe.evaluate.judges import rounded, subset_kid
from ganpipe.evaluate.scores import Metrics, Scores
from ganpipe.models.generator import classes_of_seeds
from ganpipe.params import Evaluate

LEAST = 20  # generated and training images of a class; of fewer, the KID says nothing


def score_classes(root: Path, data: Dataset, scores: Scores, params: Evaluate, first_seed: int) -> Metrics:
    """Compute the KID of each class, if a checkout's generator has classes, from the features of `scores`.

    The generated images are those of the seeds from `first_seed` on, which say their classes.

    Returns:
        class_kid_…, the mean over the classes that have one; `classes`: name → KID, None with fewer than
        LEAST images; `classes_unscored`: why some have none, else None. Without classes an empty dict.
    """
    path = stage_file(root, "model.json")
    classes = json.loads(path.read_text(encoding="utf-8")).get("classes") if path.exists() else None
    if not classes:
        return {}
    fakes = np.concatenate(scores.features.fakes)
    of_fakes = classes_of_seeds(classes, first_seed, len(fakes)).numpy()
    of_train = read_classes(root, data)[1][scores.train_rows]
    kids: dict[str, float | None] = {}
    for number, name in enumerate(classes):
        real, fake = scores.features.train[of_train == number], fakes[of_fakes == number]
        enough = min(len(real), len(fake)) >= LEAST
        kids[name] = rounded(subset_kid(real, fake, params)) if enough else None
    scored = [value for value in kids.values() if value is not None]
    unscored = None
    if few := [name for name in kids if kids[name] is None]:
        reason = f"fewer than {LEAST} generated or training images; raise sample.count, or add pictures"
        unscored = f"{len(few)} of {len(kids)} classes, such as {few[0]}, have {reason}"
    mean = rounded(float(np.mean(scored))) if scored else None
    return {f"class_{scores.names.kid}": mean, "classes": kids, "classes_unscored": unscored}
