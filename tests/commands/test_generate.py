"""`ganpipe generate`, and the places where it finds a generator."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, save_generator
from PIL import Image
from typer.testing import CliRunner

from ganpipe.cli import app
from ganpipe.commands.generate import GenerateOptions, generate
from ganpipe.commands.trained import find_generator
from ganpipe.common.errors import UserError
from ganpipe.models.generator import MAX_IMAGES, images_of, load_generator, z_of_seeds
from ganpipe.params import Params


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, small_params: Params) -> Path:
    """A checkout with only the files of a generator."""
    folder = tmp_path_factory.mktemp("checkout")
    save_generator(folder / "stages/train", small_params)
    return folder


def generated(root: Path, out: Path, source: str | None = None, **options: Any) -> np.ndarray:
    """Generate images and read them back, uint8 N×16×16×1."""
    generate(source, out, GenerateOptions(**options), root)
    if out.suffix == ".npy":
        images: np.ndarray = np.load(out)
        return images
    if out.suffix == ".zip":
        with zipfile.ZipFile(out) as archive:
            pngs = [io.BytesIO(archive.read(name)) for name in archive.namelist()]
            assert archive.namelist() == sorted(archive.namelist())
    else:
        pngs = [io.BytesIO(path.read_bytes()) for path in sorted(out.iterdir())]
    return np.stack([np.asarray(Image.open(png)) for png in pngs])[..., None]


def test_the_images_are_the_sample_stages(root: Path, tmp_path: Path, small_params: Params) -> None:
    """A failure means that other images are generated than those that evaluate judged."""
    G = load_generator(root / "stages/train/generator.safetensors").network
    expected = images_of(G, z_of_seeds(small_params.model, 95, 30, 0.5))
    for name in ("folder", "a.zip", "a.npy"):
        assert np.array_equal(generated(root, tmp_path / name, n=30, seed=95, z_scale=0.5), expected), name
    assert [path.name for path in sorted((tmp_path / "folder").iterdir())][:6:5] == ["095.png", "100.png"]
    assert len(np.unique(expected, axis=0)) == 30


@pytest.mark.parametrize("architecture", ["dcgan", "celeba64", "upsample", "residual"])
def test_an_image_depends_on_its_seed_alone(
    tmp_path: Path, default_params: Params, architecture: str
) -> None:
    """A failure means that the bytes of image 7 depend on the batch size or the first seed."""
    save_generator(tmp_path / "stages/train", default_params, 64, 3, architecture=architecture, ngf=7)
    all_of_them = generated(tmp_path, tmp_path / "all.npy", n=40)
    for batch, seed in ((1, 36), (3, 7), (16, 5), (17, 0)):
        few = generated(tmp_path, tmp_path / "few.npy", n=4 + batch, seed=min(seed, 36 - batch), batch=batch)
        first = min(seed, 36 - batch)
        assert few.tobytes() == all_of_them[first : first + 4 + batch].tobytes(), (batch, seed)


def test_ten_thousand_images_stream(root: Path, tmp_path: Path) -> None:
    """A failure means that memory grows with the number of images, which ends a long job."""
    script = (
        "import resource; from pathlib import Path\n"
        "from ganpipe.commands.generate import GenerateOptions, generate\n"
        "generate(None, Path('small.npy'), GenerateOptions(n=64))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "generate(None, Path('large.npy'), GenerateOptions(n=10000))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    shutil.copytree(root / "stages", tmp_path / "stages")
    save_generator(tmp_path / "stages/train", None, 64)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    size = (tmp_path / "large.npy").stat().st_size
    assert size > 40_000_000 and int(ended.stdout.split()[-1]) * 1024 < 0.25 * size, ended.stdout
    assert "10,000/10,000 images (100%)" in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: found 0"),
        ({"n": -1}, "n: found -1"),
        ({"n": 10**12}, f"between 1 and {MAX_IMAGES:,}"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**63 - 1, "n": 2}, "seed: found"),
        ({"z_scale": float("nan")}, "z_scale: found nan"),
        ({"z_scale": float("inf")}, "z_scale: found inf"),
        ({"z_scale": 0.0}, "z_scale: found 0"),
    ],
)
def test_absurd_values_get_one_sentence(
    root: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """A failure means a crash, a full disk or black images instead of a message."""
    with pytest.raises(UserError, match=message) as error:
        generate(None, tmp_path / "a.npy", GenerateOptions(**options), root)
    assert "\n" not in str(error.value) and not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize(
    ("batch", "limit"), [("0", "or equal to 1 "), ("1000000000000", "or equal to 4096 ")]
)
def test_absurd_batches_are_refused(batch: str, limit: str) -> None:
    """A failure means a crash, or memory for a million million images."""
    ended = CliRunner().invoke(app, ["generate", "--batch", batch])
    assert ended.exit_code == 2 and "'--batch'" in ended.stderr and limit in ended.stderr


def test_destinations_that_exist_or_lack_space_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that the user's own pictures are mixed with ours, or that the disk fills."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/cat.png").write_bytes(b"cat")
    (tmp_path / "dir.npy").mkdir()
    for name, message in (
        ("mine", "already exists"),
        ("mine/cat.png", "neither a .zip nor an .npy"),
        ("dir.npy", "is a folder"),
    ):
        with pytest.raises(UserError, match=f"--out: .*{message}"):
            generate(None, tmp_path / name, GenerateOptions(), root)
    assert (tmp_path / "mine/cat.png").read_bytes() == b"cat"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.raises(UserError, match=r"needs 0\.3 GB, but .* has 0\.0 GB free"):
        generate(None, tmp_path / "a.npy", GenerateOptions(n=1_000_000), root)


def test_a_generator_is_found_in_files_and_folders(root: Path, tmp_path: Path, small_params: Params) -> None:
    """A failure means that snapshots, or weights copied elsewhere, cannot be used."""
    expected = generated(root, tmp_path / "a.npy", n=3)
    folder = tmp_path / "elsewhere"
    shutil.copytree(root / "stages/train", folder)
    (folder / "snapshots").mkdir()
    shutil.copy(folder / "generator.safetensors", folder / "snapshots/2.safetensors")
    for source in (folder, folder / "generator.safetensors", folder / "snapshots/2.safetensors"):
        assert np.array_equal(generated(tmp_path, tmp_path / "b.npy", str(source), n=3), expected), source
    (folder / "odd.safetensors").write_bytes(b"PK")
    safetensors.torch.save_file({"weight": torch.ones(1)}, folder / "bare.safetensors")
    (tmp_path / "empty").mkdir()
    for source, message in (
        (folder / "bare.safetensors", "the header lacks the key 'ganpipe'"),
        (folder / "odd.safetensors", "not a readable .safetensors file"),
        (tmp_path / "empty", r"found 0 files generator\.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            find_generator(str(source), tmp_path)
    with pytest.raises(UserError, match=r"stages/train.*run the train stage"):
        find_generator(None, tmp_path)


def test_an_unknown_name_gets_one_sentence(tmp_path: Path) -> None:
    """A failure means that a typing error ends in a traceback from DVC."""
    from dvc.repo import Repo

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    Repo.init(str(tmp_path)).close()
    with pytest.raises(UserError, match="DVC: Empty git repo"):
        find_generator("lr-7", tmp_path)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, "commit", "-qm", "first"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="lr-7: no such file, folder or DVC experiment"):
        find_generator("lr-7", tmp_path)
