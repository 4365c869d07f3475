"""The description on a run's page, compared with checkouts in git and the recipes of params.yaml."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, updated

from ganpipe.experiments import recipes
from ganpipe.params import Params
from ganpipe.tracking.identity import nearest_recipe, recipe_and_grid_tags
from ganpipe.tracking.page import note, repeat_commands


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of params.yaml and the package."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "ganpipe").mkdir()
    (tmp_path / "ganpipe/train.py").write_text("print()\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_the_command_makes_the_very_params_again(checkout: Path, default_params: Params) -> None:
    """A failure means that the command on a run's page starts another run."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True
    ).stdout.strip()
    changed = updated(
        default_params,
        train__glr=2e-5,
        train__snapshot_epochs=[1, 3],
        train__flip=True,
        fetch__path="/a b/$(x)'s",
        model__z_limit=1.5,
        evaluate__weights=None,
    )
    command = repeat_commands(checkout, changed.experiment, head, clean=False)
    lines = command.splitlines()
    assert lines[0] == f"git checkout {head[:12]}" and len(lines) == 2
    words = shlex.split(lines[1])
    assert words[:3] == ["dvc", "exp", "run"]
    settings = [word for word in words[3:] if word != "-S"]
    assert recipes.apply_settings(default_params, settings, "command") == changed
    assert repeat_commands(checkout, default_params.experiment, head, clean=False).endswith("\ndvc exp run")
    (checkout / "ganpipe/train.py").write_text("print(1)\n")
    assert "uncommitted changes" in repeat_commands(checkout, changed.experiment, head, clean=False)
    assert repeat_commands(checkout, changed.experiment, head, clean=True) == command, "edited after the run"
    assert repeat_commands(checkout, changed.experiment, "0" * 40, clean=True) == ""
    assert repeat_commands(checkout, changed.experiment, None, clean=False) == ""


def test_a_run_is_called_after_its_recipe(default_params: Params) -> None:
    """A failure means that a run is named after another paper's recipe."""
    for name in ("stiff2018-mnist", "xin2024-5"):
        words = [*recipes.recipe_settings(default_params, name), "fetch.path=/x"]
        values = recipes.apply_settings(default_params, [*words, "train.epochs=7"], "test")
        nearest = nearest_recipe(values)
        assert nearest is not None and nearest[0] == name and "train.epochs=7" in nearest[1]
    assert nearest_recipe(default_params) is None
    tags = recipe_and_grid_tags(default_params, "xin2024-two-rates-dlr=0.0064-glr=0.0032-s12")
    assert tags == {
        "ganpipe.grid": "xin2024-two-rates",
        "ganpipe.cell": "xin2024-two-rates-dlr=0.0064-glr=0.0032",
    }
    assert recipe_and_grid_tags(default_params, "xin2024-two-rates-mine") == {}


def test_the_note_has_scores_beside_their_floors(tmp_path: Path, default_params: Params) -> None:
    """A failure means that a page shows scores without their floors, which give them a meaning."""
    model: dict[str, Any] = {"train_images": 4451, "batch_size": 64, "data_digest": "d" * 64}
    model |= {"ended": "complete", "interventions": 2}
    metrics: dict[str, float | str | None] = {
        "kid_lite0": 0.16234,
        "kid_lite0_sd": 0.01,
        "kid_lite0_floor": -0.0012,
        "n": 500,
    }
    metrics |= {"recall": 0.7, "recall_sd": None, "recall_floor": None}
    metrics |= {"memorisation": "none found", "protocol": "lite0; n=500"}
    text = note(tmp_path, default_params.experiment, {}, model, metrics)
    assert "| kid_lite0 | **0.162** | 0.01 | -0.0012 |\n| recall | **0.7** | – | – |" in text.replace(
        "&emsp;", ""
    )
    for words in (
        "4,451 images, 5 epochs, batch size 64, seed 0; ended: complete; interventions: 2",
        "`mnist5k`, 28 px, digest `dddddddddddddddd`",
        "none found",
        "n=500",
        "resize (ganpipe",
    ):
        assert words in text
    assert not re.search("None|nan", text)
