"""The model card."""

import json
from pathlib import Path

import pytest

from ganpipe.evaluate.card import card
from ganpipe.params import Params

METRICS = {
    "kid_lite0": 0.16234,
    "kid_lite0_sd": 0.01,
    "kid_lite0_floor": -0.0012,
    "fd_lite0_ratio": 4.0,
    "fd_lite0_ratio_sd": 0.1,
    "authenticity": 0.91,
    "authenticity_sd": None,
    "authenticity_floor": 0.9,
    "n": 500,
    "memorisation": "no sign of copies",
    "ranked_by": "kid_lite0",
    "protocol": "lite0; n=500",
}


@pytest.fixture
def root(tmp_path: Path, default_params: Params) -> Path:
    """A checkout with the files that the card reads."""
    for stage in ("fetch", "train"):
        (tmp_path / "stages" / stage).mkdir(parents=True)
    source = {
        "name": "mnist5k",
        "licence": "CC BY-SA 3.0",
        "cite": "LeCun 1998",
        "address": None,
        "files": 5000,
    }
    (tmp_path / "stages/fetch/source.json").write_text(json.dumps(source))
    model = default_params.model.model_dump() | {"nimg": 178048}
    model |= {"train": default_params.train.model_dump() | {"drift_weight": 0.0}}
    model |= {"resolution": 32, "channels": 1, "train_images": 4451, "batch_size": 64, "weights": "ema"}
    model |= {"data_digest": "d" * 64, "ended": "finished", "interventions": 1, "device": "cuda"}
    (tmp_path / "stages/train/model.json").write_text(json.dumps(model))
    rows = "1,64,1.5,200\n2,128,125.2,300\n3,192,299.6,900\n"
    (tmp_path / "stages/train/perf.csv").write_text("step,nimg,seconds,images_per_second\n" + rows)
    return tmp_path


def test_the_card_contains_what_a_recipient_must_know(root: Path) -> None:
    """If it fails, a generator is passed on without the licence of its data, or scores without floors."""
    text = card(root, METRICS)
    for words in (
        "# A generator of 32 px images, trained on mnist5k",
        "- licence: CC BY-SA 3.0\n- cite: LeCun 1998\n- files: 5000",
        "- network: resize (ganpipe, after Deng",
        "- ngf: 32\n- ndf: 32\n",
        "- training images: 4,451, digest dddddddddddddddd",
        "- glr: 0.001",
        "- ended: finished\n- interventions: 1",
        "| kid_lite0 | 0.162 | 0.01 | -0.0012 | kernel distance to the real images, 0 is perfect |",
        "| authenticity | 0.91 | – | 0.9 |",
        "no sign of copies.",
        "lite0; n=500.",
        "Training took 5 min 0 s on cuda, 300 images a second.",
    ):
        assert words in text, words
    assert "None" not in text and "| fd_lite0_ratio" not in text and text.endswith("\n")


def test_the_card_says_whether_the_training_saw_the_judge(root: Path) -> None:
    """If it fails, a drifting training is praised by the network that it was trained in."""
    path = root / "stages/train/model.json"
    model = json.loads(path.read_text())
    assert "The training" not in card(root, METRICS)
    model["train"]["drift_weight"] = 1.0
    path.write_text(json.dumps(model))
    assert "in this very network" in card(root, METRICS)
    others = {name.replace("lite0", "lite2"): value for name, value in METRICS.items()}
    # The second network's numbers stand beside the judge's, and only the judge decides.
    text = card(root, {**METRICS, **others, "ranked_by": "kid_lite2", "kid_quotient": 1.234})
    assert "these scores are of another network" in text and "very network" not in text
    assert "is 1.23 times that of the second network" in text
    assert "| kid_lite0 | 0.162 |" in text and "| kid_lite2 | 0.162 |" in text


def test_images_of_another_program_have_a_card(tmp_path: Path) -> None:
    """If it fails, images of another program cannot be scored, because there is no training."""
    text = card(tmp_path, METRICS)
    assert text.startswith("# A generator\n") and "## Scores" in text
    assert "## Cost" not in text and "## Data" not in text
