"""The page of the comparison: cells × epochs, curves of all cells in one chart, and reading the outputs."""

import base64
import html
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ganpipe.common.errors import UserError
from ganpipe.experiments.cells import Run, cell_table
from ganpipe.experiments.compare_page import comparison_page
from ganpipe.experiments.revisions import read_outputs

SIDE, EPOCHS = 16, (1, 5, 20)


def png(pixels: np.ndarray) -> bytes:
    """Return a grey picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def run(cell: int, seed: int, scored: bool = True) -> Run:
    """Make a finished run: its losses are 1 + cell and 2 + cell apart from spikes, the cell is the KID."""
    rng, steps = np.random.default_rng(100 * cell + seed), np.arange(1, 1001)
    history = pd.DataFrame({"nimg": 8 * steps, "d_loss": 1.0 + cell, "g_loss": 2.0 + cell})
    history.loc[::50, "d_loss"] = 1e6
    rows = [(epoch, 400 * epoch, cell + seed / 10, 90.0, 0.5, None) for epoch in EPOCHS if scored]
    snapshots = pd.DataFrame(rows, columns=["epoch", "nimg", "kid", "fd", "precision", "recall"])
    grids = {epoch: png(rng.integers(0, 256, (8 * SIDE, 8 * SIDE), np.uint8)) for epoch in EPOCHS}
    metrics = {"kid_lite0": float(cell), "kid_lite0_floor": 0.0, "n": 100, "protocol": "lite0; n=100"}
    metrics["ranked_by"] = "kid_lite0"
    values = {"train.glr": cell, "preprocess.resolution": SIDE}
    name, grid = f"cell{cell}-s{seed}", grids[EPOCHS[-1]]
    return Run(name, seed, values, metrics, "aaaaaaaa", history, grid, snapshots=snapshots, grids=grids)


def page_of(runs: list[Run]) -> str:
    """Return the page of some runs."""
    return comparison_page(cell_table(runs), runs, [], "title")


def test_each_cell_shows_its_images_and_numbers_after_each_epoch() -> None:
    """A failure means that settings cannot be compared after 1, 5 and 20 epochs."""
    runs = [run(cell, seed) for cell in (1, 2) for seed in (0, 1)]
    page = page_of(runs)
    for epoch in EPOCHS:
        assert f"<th>epoch {epoch}</th>" in page
        for cell in (1, 2):
            pattern = rf'alt="cell{cell}, epoch {epoch}" src="data:image/png;base64,(.+?)">\n(.*)'
            ((source, numbers),) = re.findall(pattern, page)
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
            expected = np.asarray(Image.open(io.BytesIO(runs[2 * cell - 2].grids[epoch])))
            assert np.array_equal(shown[::7, ::7], expected[: 4 * SIDE, : 4 * SIDE])
            assert numbers.startswith(f"kid {cell}.050 ± 0.071<br>fd 90 ± 0<br>precision 0.5 ± 0<br>recall –")


def test_a_cell_without_scores_or_with_fewer_epochs_has_its_place() -> None:
    """A failure means that the page of cells × epochs needs the same snapshots in all cells."""
    shorter = run(2, 0, scored=False)
    del shorter.grids[20]
    page = page_of([run(1, 0), shorter])
    assert page.count("no numbers: set evaluate.snapshots=true") == 2
    assert "cell1, epoch 20" in page and "cell2, epoch 20" not in page
    assert "After the same epochs" not in page_of([Run(**vars(shorter) | {"grids": {}})])


def test_curves_of_all_cells_lie_in_one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that curves miss, hide behind spikes or cannot be told apart."""
    charts: dict[str, Any] = {}

    def note(figure: Figure) -> Image.Image:
        charts.setdefault(figure.axes[0].get_ylabel(), figure.axes[0])
        return Image.new("L", (8, 8))

    monkeypatch.setattr("ganpipe.experiments.compare_page.plot_image", note)
    page = html.unescape(page_of([run(cell, seed) for cell in range(1, 13) for seed in (0, 1)]))
    del charts[""]  # those of single cells, with a legend inside
    assert list(charts) == ["D's loss", "G's loss", "KID of the snapshots"]
    for first, (title, axes) in zip((1, 2, 0.05), charts.items(), strict=True):
        assert f"<b>{title}</b>" in page and axes.get_xlabel() == "images seen"
        assert len(axes.lines) == 12
        for cell, line in enumerate(axes.lines, 1):
            assert np.allclose(line.get_ydata(), first + cell)
            key = f'border-top: 3px {{}} {line.get_color()}"></i>cell{cell}</span>'
            assert key.format({"-": "solid", "--": "dashed", ":": "dotted"}[line.get_linestyle()]) in page
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 12
        assert 12 + first < axes.get_ylim()[1] < 20


def test_outputs_are_read_from_the_cache_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that pictures are lost, or that a cache without them ends in a traceback."""
    from dvc.repo import Repo

    train = tmp_path / "stages/train"
    (train / "grids").mkdir(parents=True)
    for name in ("grids/1.png", "grids/20.png", "history.csv"):
        (train / name).write_text(name)
    outs = "[stages/train/grids, stages/train/history.csv]"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{train: {{cmd: exit 1, outs: {outs}}}}}\n")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@t")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    Repo.init(str(tmp_path)).close()
    with Repo(str(tmp_path)) as repo:
        repo.commit(force=True)
        cache = Path(repo.cache.local.path)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "commit", "-qm", "first"], cwd=tmp_path, check=True)
    shutil.rmtree(tmp_path / "stages")
    held = read_outputs(tmp_path, "x", "HEAD", ["history.csv", "grids"])
    assert held == {name: name.encode() for name in ("history.csv", "grids/1.png", "grids/20.png")}
    with pytest.raises(
        UserError, match=r"evals\.csv is not in DVC's cache; `dvc exp apply x` and `dvc pull`"
    ):
        read_outputs(tmp_path, "x", "HEAD", ["evals.csv"])
    for path in cache.rglob("*.dir"):
        path.unlink()
    shutil.rmtree(tmp_path / ".dvc/tmp")
    with pytest.raises(UserError, match="grids is not in DVC's cache"):
        read_outputs(tmp_path, "x", "HEAD", ["grids"])
