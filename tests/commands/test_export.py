"""`ganpipe export`: the same images from each file, in any number at a time, and without ganpipe."""

import json
import subprocess
import sys
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

SIDES = {"dcgan": 32, "celeba64": 32, "upsample": 28, "residual": 32}
# Run before the printed lines, to hide ganpipe from them, and after them, to save what they computed.
WITHOUT_GANPIPE = 'import sys; sys.modules["ganpipe"] = None\n'
SEEDED = "import numpy; numpy.random.seed(0)\n"  # scipy draws from numpy's global generator too
SAVE = "\nimport numpy; numpy.savez('out.npz', z=z, images=images)"


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("architecture", "channels", "distribution", "limit"),
    [
        ("dcgan", 1, "normal", None),
        ("celeba64", 3, "uniform", 1.0),
        ("upsample", 1, "normal", 1.5),
        ("residual", 3, "normal", None),
    ],
)
def test_the_printed_lines_compute_the_networks_images(
    tmp_path: Path,
    default_params: Params,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    architecture: str,
    channels: int,
    distribution: str,
    limit: float | None,
) -> None:
    """A failure means that others get other images than we do, or need our code to get any."""
    model = {"architecture": architecture, "nz": 20, "ngf": 8, "z_distribution": distribution}
    save_generator(
        tmp_path / "stages/train", default_params, SIDES[architecture], channels, **model, z_limit=limit
    )
    export(None, form, tmp_path / f"g.{form}", tmp_path)
    printed = capsys.readouterr().out
    difference = float(printed.partition("64 seeds: ")[2].partition(",")[0])
    assert difference <= (1e-4 if form == "onnx" else 1e-6)
    network = find_generator(None, tmp_path).network
    monkeypatch.chdir(tmp_path)
    script = "\n".join(line.strip() for line in printed.splitlines() if line.startswith("    "))
    computed: dict[str, np.ndarray] = {}
    if form == "safetensors":  # ganpipe itself builds this network, as the last words printed say
        np.random.seed(0)
        exec(script, computed)
        assert printed.split()[-2] == 'ganpipe.models.generator.load_generator(Path("g.safetensors")).network'
        exported = load_generator(tmp_path / "g.safetensors").network
        computed["images"] = exported(torch.from_numpy(computed["z"])).numpy()
    else:
        command = [sys.executable, "-c", WITHOUT_GANPIPE + SEEDED + script + SAVE]
        subprocess.run(command, check=True)
        computed = np.load(tmp_path / "out.npz")
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
