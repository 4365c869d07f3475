"""Time and memory of a large set: generated pictures in tars, through fetch, preprocess and train.

Writes tars with 10,000 distinct JPEG files of 64×64 each into a folder, unless it has them, then runs each
stage on a copy of this checkout there. Prints its time, its CPU time, the most memory of all its processes
together (what they own, without the kernel's cache of files), and what it wrote.

    python tests/benchmarks/large_set.py /tmp/large --images 1000000 --shard-mb 1024
"""

import argparse
import io
import multiprocessing
import os
import shutil
import sys
import tarfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML

import ganpipe  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PER_TAR = 10_000
# A small network on few batches: the first step is what depends on the size of the set.
TRAIN: dict[str, Any] = {"steps": 20, "epochs": None, "batch_size": 64, "drift_weight": 0.0}
TRAIN |= {"snapshot_epochs": [], "eval_every_kimg": None, "keep": "last"}


def write_tar(folder: Path, count: int, number: int) -> None:
    """Write `count` pictures into a tar, unless it is there."""
    path = folder / f"{number:05d}.tar"
    if path.exists():
        return
    with tarfile.open(path.with_suffix(".part"), "w") as archive:
        cells = np.random.default_rng(number).integers(0, 256, (count, 8, 8, 3), np.uint8)
        for i in range(count):
            file, info = io.BytesIO(), tarfile.TarInfo(f"{i:06d}.jpg")
            Image.fromarray(cells[i]).resize((64, 64), Image.Resampling.BILINEAR).save(
                file, "JPEG", quality=90
            )
            info.size = file.tell()
            file.seek(0)
            archive.addfile(info, file)
    path.with_suffix(".part").rename(path)


def checkout(root: Path, tars: Path, shard_mb: int | None) -> None:
    """Copy what the stages need of this checkout, with params for the tars and a small network."""
    for name in ("ganpipe", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    yaml = YAML()
    values = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["fetch"] |= {"source": "webdataset", "path": str(tars)}
    values["preprocess"] |= {"resolution": 64, "channels": 3, "held_out": 0.01, "shard_mb": shard_mb}
    values["model"] |= {"architecture": "dcgan", "ngf": 8, "ndf": 8, "conditional": False}
    values["train"] |= TRAIN
    yaml.dump(values, root / "params.yaml")


def measure(root: Path, stage: str) -> None:
    """Run a stage and print what it used."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    started, most, cpu = time.monotonic(), 0, 0.0
    with open(root / f"{stage}.log", "wb") as log:
        parent = psutil.Popen([sys.executable, "-m", "ganpipe", stage], cwd=root, stderr=log, env=environment)
    while parent.poll() is None:
        family, owned = [parent], 0
        with suppress(psutil.Error):
            family += parent.children(recursive=True)
        for process in family:
            with suppress(OSError, ValueError, StopIteration):
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                owned += int(next(line for line in lines if line.startswith("Pss_Anon")).split()[1]) << 10
        most = max(most, owned)
        with suppress(psutil.Error):
            cpu = max(cpu, sum(sum(process.cpu_times()[:4]) for process in family))
        time.sleep(0.5)
    if parent.returncode:
        sys.exit((root / f"{stage}.log").read_text())
    size = sum(path.stat().st_size for path in (root / "stages" / stage).rglob("*") if path.is_file())
    took = time.monotonic() - started
    print(
        f"{stage:10} {took:7.0f} s {cpu:7.0f} CPU s  {most / 1e9:5.2f} GB  {size / 1e9:5.2f} GB on disk",
        flush=True,
    )


def main() -> None:
    """Make the set, run the stages, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shard-mb", type=int)
    parser.add_argument("--stages", nargs="*", default=["fetch", "preprocess", "train"])
    given = parser.parse_args()
    tars, root = given.folder.resolve() / f"tars-{given.images}", given.folder.resolve() / "checkout"
    tars.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool() as pool:
        pool.map(partial(write_tar, tars, min(PER_TAR, given.images)), range(-(-given.images // PER_TAR)), 1)
    if not root.exists():
        checkout(root, tars, given.shard_mb)
    for stage in given.stages:
        measure(root, stage)


if __name__ == "__main__":
    main()
