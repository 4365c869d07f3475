"""`ganpipe export`: the same images from each file, in any number at a time, and without ganpipe."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from conftest import save_generator
from typer.testing import CliRunner

from ganpipe.cli import app
from ganpipe.commands.export import WRITERS, export
from ganpipe.commands.trained import find_generator
from ganpipe.common.errors import UserError
from ganpipe.models.generator import load_generator
from ganpipe.params import Params

# Architecture, side, channels, distribution and limit of z.
NETWORKS: list[tuple[str, int, int, str, float | None]] = [
    ("dcgan", 32, 1, "normal", None),
    ("celeba64", 32, 3, "uniform", 1.0),
    ("upsample", 28, 1, "normal", 1.5),
    ("residual", 32, 3, "normal", None),
    ("resize", 28, 1, "normal", None),
]
# Runs each folder's printed lines, from which ganpipe is hidden, and saves what they computed.
PROGRAM = """
import os, sys
sys.modules["ganpipe"] = None
import numpy
for folder in sys.argv[1:]:
    os.chdir(folder)
    numpy.random.seed(0)  # scipy draws from numpy's global generator too
    names = {}
    exec(open("printed.py").read(), names)
    numpy.savez("out.npz", z=names["z"], images=names["images"])
"""


@pytest.fixture(scope="module", params=WRITERS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, default_params: Params
) -> tuple[str, dict[str, tuple[Path, str]]]:
    """A form, and by architecture the folder of an export in this form and what it printed.

    What the printed lines of a form without ganpipe compute is in out.npz, from one process for all networks.
    """
    form, folders = request.param, {}
    for architecture, side, channels, distribution, limit in NETWORKS:
        folder = tmp_path_factory.mktemp(f"{form}-{architecture}")
        model = {"architecture": architecture, "nz": 20, "ngf": 8, "z_distribution": distribution}
        save_generator(folder / "stages/train", default_params, side, channels, **model, z_limit=limit)
        with redirect_stdout(io.StringIO()) as printed:
            export(None, form, folder / f"g.{form}", folder)
        lines = [line.strip() for line in printed.getvalue().splitlines() if line.startswith("    ")]
        (folder / "printed.py").write_text("\n".join(lines))
        folders[architecture] = folder, printed.getvalue()
    if form != "safetensors":
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *(folder for folder, _ in folders.values())], check=True
        )
    return form, folders


@pytest.mark.parametrize(("architecture", "limit"), [(network[0], network[4]) for network in NETWORKS])
def test_the_printed_lines_compute_the_networks_images(
    exported: tuple[str, dict[str, tuple[Path, str]]],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    limit: float | None,
) -> None:
    """A failure means that others get other images than we do, or need our code to get any."""
    form, folders = exported
    folder, printed = folders[architecture]
    difference = float(printed.partition("64 seeds: ")[2].partition(",")[0])
    assert difference <= (1e-4 if form == "onnx" else 1e-6)
    network = find_generator(None, folder).network
    computed: dict[str, np.ndarray] = {}
    if form == "safetensors":  # ganpipe itself builds this network, as the last words printed say
        monkeypatch.chdir(folder)
        np.random.seed(0)
        exec((folder / "printed.py").read_text(), computed)
        assert printed.split()[-2] == 'ganpipe.models.generator.load_generator(Path("g.safetensors")).network'
        loaded = load_generator(folder / "g.safetensors").network
        computed["images"] = loaded(torch.from_numpy(computed["z"])).numpy()
    else:
        computed = np.load(folder / "out.npz")
    z, images = computed["z"], computed["images"]
    expected = network(torch.from_numpy(z)).numpy()
    assert expected.std(axis=0).mean() > 1e-3, "images that are all alike prove nothing"
    assert images.shape == expected.shape and np.abs(images - expected).max() < 1e-4
    assert z.shape == (8, 20) and (limit is None or 0.9 * limit < np.abs(z).max() <= limit)


def test_the_weights_file_describes_its_network(tmp_path: Path, small_params: Params) -> None:
    """A failure means that weights outside their folder cannot be loaded."""
    save_generator(tmp_path / "stages/train", small_params)
    export(None, "safetensors", tmp_path / "away/g.safetensors", tmp_path)
    with safetensors.safe_open(tmp_path / "away/g.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ganpipe"])["resolution"] == 16
    first, again = (
        find_generator(source, tmp_path) for source in (None, str(tmp_path / "away/g.safetensors"))
    )
    z = torch.ones(2, 8)
    assert torch.equal(first.network(z), again.network(z)) and again.spec == first.spec


def test_mistakes_get_one_sentence(
    tmp_path: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that a wrong file name or a missing package ends in a traceback."""
    save_generator(tmp_path / "stages/train", small_params)
    (tmp_path / "d.pt2").mkdir()
    for form, out, message in (
        ("onnx", tmp_path / "a.pt2", r"--out: found .*a\.pt2, but it must name a file that ends in \.onnx"),
        ("pt2", tmp_path / "d.pt2", "--out: found"),
    ):
        with pytest.raises(UserError, match=message) as error:
            export(None, form, out, tmp_path)
        assert "\n" not in str(error.value)
    ended = CliRunner().invoke(app, ["export", "--format", "jpeg"])
    assert ended.exit_code == 2 and "'jpeg' is not one of 'onnx'" in ended.stderr
    monkeypatch.setattr(
        "ganpipe.commands.export.find_spec", lambda name: None if name == "onnxruntime" else 1
    )
    with pytest.raises(UserError, match=r"needs onnxruntime; run `pip install 'ganpipe\[export\]'`"):
        export(None, "onnx", tmp_path / "a.onnx", tmp_path)


def test_a_file_with_other_images_is_not_written(
    tmp_path: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that an exporter's mistake reaches the user."""
    save_generator(tmp_path / "stages/train", small_params)
    load = torch.export.load

    def broken(file: object) -> torch.export.ExportedProgram:
        program = load(file)  # type: ignore[arg-type]
        weights = next(iter(program.state_dict.values()))
        weights.mul_(1.01)
        return program

    monkeypatch.setattr(torch.export, "load", broken)
    with pytest.raises(UserError, match="not written, because its images differ"):
        export(None, "pt2", tmp_path / "a.pt2", tmp_path)
    assert not list(tmp_path.glob("a.pt2*"))
