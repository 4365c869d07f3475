"""`ganpipe generate`: images of a generator that leaves the house, from any place that it may be in."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, save_generator
from PIL import Image

from ganpipe.commands import trained
from ganpipe.commands.generate import generate
from ganpipe.common.errors import UserError
from ganpipe.models import generator as snapshot
from ganpipe.models.generator import MAX_IMAGES
from ganpipe.params import Params


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, small_params: Params) -> Path:
    """A checkout with nothing but the files of a generator."""
    folder = tmp_path_factory.mktemp("checkout")
    save_generator(folder / "stages/train", small_params)
    return folder


def made(root: Path, out: Path, source: str | None = None, **options: float) -> np.ndarray:
    """Generate and read the images back, uint8 N×16×16×1."""
    generate(source, out, root, **options)  # type: ignore[arg-type]
    if out.suffix == ".npy":
        images: np.ndarray = np.load(out)
        return images
    if out.suffix == ".zip":
        with zipfile.ZipFile(out) as archive:
            each = [io.BytesIO(archive.read(name)) for name in archive.namelist()]
            assert archive.namelist() == sorted(archive.namelist())
    else:
        each = [io.BytesIO(path.read_bytes()) for path in sorted(out.iterdir())]
    return np.stack([np.asarray(Image.open(file)) for file in each])[..., None]


def test_the_images_are_the_sample_stages(root: Path, tmp_path: Path, small_params: Params) -> None:
    """A studio would get other images than those that were judged."""
    G = snapshot.load_generator(root / "stages/train/generator.safetensors").network
    expected = snapshot.images_of(G, snapshot.z_of_seeds(small_params.model, 95, 30, 0.5))
    for name in ("folder", "a.zip", "a.npy"):
        assert np.array_equal(made(root, tmp_path / name, n=30, seed=95, z_scale=0.5), expected), name
    assert [path.name for path in sorted((tmp_path / "folder").iterdir())][:6:5] == ["095.png", "100.png"]
    assert len(np.unique(expected, axis=0)) == 30


@pytest.mark.parametrize("architecture", ["dcgan", "celeba64", "upsample", "residual"])
def test_a_seed_is_an_image_whatever_the_batch(
    tmp_path: Path, default_params: Params, architecture: str
) -> None:
    """The bytes of image 7 would depend on how many are made at once, and where the count starts."""
    save_generator(tmp_path / "stages/train", default_params, 64, 3, architecture=architecture, ngf=7)
    all_of_them = made(tmp_path, tmp_path / "all.npy", n=40)
    for batch, seed in ((1, 36), (3, 7), (16, 5), (17, 0)):
        few = made(tmp_path, tmp_path / "few.npy", n=4 + batch, seed=min(seed, 36 - batch), batch=batch)
        first = min(seed, 36 - batch)
        assert few.tobytes() == all_of_them[first : first + 4 + batch].tobytes(), (batch, seed)


def test_ten_thousand_images_stream(root: Path, tmp_path: Path) -> None:
    """Memory that grows with the count ends a long job; the set must be the same in every place."""
    script = (
        "import resource, sys; from pathlib import Path; from ganpipe.commands.generate import generate\n"
        "generate(None, Path('small.npy'), n=64, batch=64)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "generate(None, Path('large.npy'), n=10000, batch=64)\n"
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
    ("options", "words"),
    [
        ({"n": 0}, "n: found 0"),
        ({"n": -1}, "n: found -1"),
        ({"n": 10**12}, f"between 1 and {MAX_IMAGES:,}"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**63 - 1, "n": 2}, "seed: found"),
        ({"z_scale": float("nan")}, "z_scale: found nan"),
        ({"z_scale": float("inf")}, "z_scale: found inf"),
        ({"z_scale": 0.0}, "z_scale: found 0"),
        ({"batch": 0}, "--batch: found 0"),
        ({"batch": 10**12}, "--batch: found 1000000000000"),
    ],
)
def test_absurd_values_get_one_sentence(
    root: Path, tmp_path: Path, options: dict[str, float], words: str
) -> None:
    """A crash, a full disk, or a set of black images."""
    with pytest.raises(UserError, match=words) as error:
        generate(None, tmp_path / "a.npy", root, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and not (tmp_path / "a.npy").exists()


def test_places_that_are_taken_or_too_small(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of the user's would be mixed with ours, or a disk fill before anyone is told."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/cat.png").write_bytes(b"cat")
    (tmp_path / "dir.npy").mkdir()
    for name, words in (
        ("mine", "is there already"),
        ("mine/cat.png", "neither a .zip nor an .npy"),
        ("dir.npy", "is a folder"),
    ):
        with pytest.raises(UserError, match=f"--out: .*{words}"):
            generate(None, tmp_path / name, root, n=2)
    assert (tmp_path / "mine/cat.png").read_bytes() == b"cat"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.raises(UserError, match=r"needs 0\.3 GB and .* has 0\.0 free"):
        generate(None, tmp_path / "a.npy", root, n=1_000_000)


def test_a_generator_is_found_in_files_and_folders(root: Path, tmp_path: Path, small_params: Params) -> None:
    """Snapshots of epochs and weights that were copied elsewhere are what people have."""
    expected = made(root, tmp_path / "a.npy", n=3)
    folder = tmp_path / "elsewhere"
    shutil.copytree(root / "stages/train", folder)
    (folder / "snapshots").mkdir()
    shutil.copy(folder / "generator.safetensors", folder / "snapshots/2.safetensors")
    for source in (folder, folder / "generator.safetensors", folder / "snapshots/2.safetensors"):
        assert np.array_equal(made(tmp_path, tmp_path / "b.npy", str(source), n=3), expected), source
    (folder / "odd.safetensors").write_bytes(b"PK")
    safetensors.torch.save_file({"weight": torch.ones(1)}, folder / "bare.safetensors")
    (tmp_path / "empty").mkdir()
    for source, words in (
        (folder / "bare.safetensors", "its header does not describe the network"),
        (folder / "odd.safetensors", "no readable .safetensors file"),
        (tmp_path / "empty", "no generator in it"),
    ):
        with pytest.raises(UserError, match=words):
            trained.find(str(source), tmp_path)
    with pytest.raises(UserError, match=r"stages/train.*run the train stage"):
        trained.find(None, tmp_path)


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    """A typing error must not end in a traceback of DVC's."""
    from dvc.repo import Repo

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    Repo.init(str(tmp_path)).close()
    with pytest.raises(UserError, match="DVC: Empty git repo"):
        trained.find("lr-7", tmp_path)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, "commit", "-qm", "first"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="lr-7: no such file, folder or DVC experiment"):
        trained.find("lr-7", tmp_path)
