"""Exported generators: the same images, in any number at a time, and without ganpipe."""

import builtins
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from conftest import save_generator

from ganpipe.commands import trained
from ganpipe.commands.export import FORMATS, export
from ganpipe.common.errors import UserError
from ganpipe.params import Params

SIDES = {"dcgan": 32, "celeba64": 32, "upsample": 28, "residual": 32}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("architecture", "channels", "distribution", "limit"),
    [
        ("dcgan", 1, "normal", None),
        ("celeba64", 3, "uniform", 1.0),
        ("upsample", 1, "normal", 1.5),
        ("residual", 3, "normal", None),
    ],
)
def test_a_file_gives_the_networks_images_without_ganpipe(
    tmp_path: Path,
    default_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    architecture: str,
    channels: int,
    distribution: str,
    limit: float | None,
) -> None:
    """A studio would see other images than the paper, or need our code to see any."""
    changes = {"architecture": architecture, "nz": 20, "ngf": 8, "z_distribution": distribution}
    save_generator(
        tmp_path / "stages/train", default_params, SIDES[architecture], channels, **changes, z_limit=limit
    )
    export(None, form, tmp_path / f"g.{form}", tmp_path)
    shown = capsys.readouterr().out
    difference = float(shown.partition("64 seeds: ")[2].partition(",")[0])
    assert difference <= (1e-4 if form == "onnx" else 1e-6)
    generator = trained.find(None, tmp_path)

    found = builtins.__import__

    def without_ganpipe(name: str, *rest: object) -> object:
        assert not name.startswith("ganpipe")
        return found(name, *rest)  # type: ignore[arg-type]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without_ganpipe)
    ran = runpy.run_path(f"g.{form}.py")
    monkeypatch.undo()
    script = (tmp_path / f"g.{form}.py").read_text()
    assert shown.endswith(script)
    if form != "safetensors":
        assert len([line for line in script.splitlines() if line]) <= 13
    expected = generator.network(torch.from_numpy(ran["z"]))
    images = ((expected.numpy() + 1) * 127.5).transpose(0, 2, 3, 1)
    assert images.std(axis=0).mean() > 1, "images that are all alike would prove nothing"
    assert ran["images"].shape == images.shape and np.abs(ran["images"] - images).max() < 0.52
    assert ran["z"].shape == (8, 20)
    assert limit is None or 0.9 * limit < np.abs(ran["z"]).max() <= limit
    assert len(list(tmp_path.glob("[0-7].png"))) == 8


def test_weights_say_what_they_are(tmp_path: Path, small_params: Params) -> None:
    """Weights without their description are of no use once they have left their folder."""
    save_generator(tmp_path / "stages/train", small_params)
    export(None, "safetensors", tmp_path / "away/g.safetensors", tmp_path)
    with safetensors.safe_open(tmp_path / "away/g.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ganpipe"])["resolution"] == 16
    first, again = (trained.find(source, tmp_path) for source in (None, str(tmp_path / "away/g.safetensors")))
    z = torch.ones(2, 8)
    assert torch.equal(first.network(z), again.network(z)) and again.spec == first.spec


def test_mistakes_get_one_sentence(
    tmp_path: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file under a wrong name, or a package that is not there, must not end in a traceback."""
    save_generator(tmp_path / "stages/train", small_params)
    (tmp_path / "d.pt2").mkdir()
    for form, out, words in (
        ("jpeg", None, "--format: found 'jpeg', but it must be one of onnx, pt2, safetensors"),
        ("onnx", tmp_path / "a.pt2", r"--out: found .*a\.pt2, but it must name a file that ends in \.onnx"),
        ("pt2", tmp_path / "d.pt2", "--out: found"),
    ):
        with pytest.raises(UserError, match=words) as error:
            export(None, form, out, tmp_path)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else 1)
    with pytest.raises(UserError, match=r"needs onnxruntime; `pip install 'ganpipe\[export\]'`"):
        export(None, "onnx", tmp_path / "a.onnx", tmp_path)


def test_a_file_that_gives_other_images_is_not_written(
    tmp_path: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter's mistake would leave the house."""
    save_generator(tmp_path / "stages/train", small_params)
    before = torch.export.load

    def broken(file: object) -> torch.export.ExportedProgram:
        program = before(file)  # type: ignore[arg-type]
        weights = next(iter(program.state_dict.values()))
        weights.mul_(1.01)
        return program

    monkeypatch.setattr(torch.export, "load", broken)
    with pytest.raises(UserError, match="not written, its images differ"):
        export(None, "pt2", tmp_path / "a.pt2", tmp_path)
    assert not list(tmp_path.glob("a.pt2*"))
