"""Speed and memory of the stage preprocess, against nothing but Pillow's decoder and resize on every core.

Two sets of JPEG files made here, 178×218 to 64 px and 1,024×1,024 to 192 px, go through the real stage and
through a bare loop in as many processes, in turn; each run of the stage is compared with the loops before and
after it, and the median counts. CPU time is of all processes together. The stage's figures are given without
what 64 pictures take, which is its start and its report, and with everything. With --memory, 200,000 small
files instead.

    python tests/benchmarks/preprocess_speed.py
    python tests/benchmarks/preprocess_speed.py --memory
"""

import argparse
import hashlib
import io
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

FEW = 64
ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import sys
from pathlib import Path
from ganpipe import params
from ganpipe.preprocess import preprocess
if __name__ == "__main__":
    values = params.load(Path(sys.argv[1]) / "params.yaml").model_dump()
    values["preprocess"] |= {"resolution": int(sys.argv[3]), "channels": 3}
    preprocess(params.parse(values, "benchmark").preprocess, Path(sys.argv[2]), int(sys.argv[4]))
"""


def pictures(count: int, width: int, height: int, seed: int) -> list[bytes]:
    """Return JPEG files of noise of every coarseness, the coarser the stronger, no two alike."""
    rng, size = np.random.default_rng(seed), (width, height)

    def noise(octave: int) -> np.ndarray:
        cells = rng.normal(0, 90 / 1.6**octave, (2**octave, 2**octave, 3)) + 128
        small = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
        return np.asarray(small.resize(size, Image.Resampling.BILINEAR)).astype(np.int16) - 128

    # Small ones are each their own noise, or thousands would be alike and the search for copies long.
    octaves, own = (range(3, 8), 2) if width > 100 else (range(0), 4)
    fine = [128 + sum((noise(octave) for octave in octaves), np.int16(0)) for _ in range(4)]
    files = []
    for i in range(count):
        file = io.BytesIO()
        pixels = (fine[i % len(fine)] + noise(own)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def write(root: Path, count: int, width: int, height: int, workers: int) -> None:
    """Write what fetch would have: an archive of distinct pictures, and its manifest."""
    (root / "stages/fetch").mkdir(parents=True)
    part = 250
    with multiprocessing.Pool(workers) as pool:
        jobs = [
            pool.apply_async(pictures, (min(part, count - start), width, height, start))
            for start in range(0, count, part)
        ]
        with (
            zipfile.ZipFile(root / "stages/fetch/images.zip", "w") as archive,
            open(root / "stages/fetch/manifest.csv", "w") as manifest,
        ):
            manifest.write("name,bytes,sha256\n")
            for i, data in enumerate(data for job in jobs for data in job.get()):
                archive.writestr(f"{i:06d}.jpg", data)
                manifest.write(f"{i:06d}.jpg,{len(data)},{hashlib.sha256(data).hexdigest()}\n")


def bare(archive: str, first: int, step: int, resolution: int) -> tuple[float, float]:
    """Decode and resize every step-th picture and nothing else; return seconds of the clock and of CPU."""
    with zipfile.ZipFile(archive) as opened:
        files = [opened.read(name) for name in opened.namelist()[first::step]]
    started, cpu = time.perf_counter(), time.process_time()
    for data in files:
        image = Image.open(io.BytesIO(data))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))
    return time.perf_counter() - started, time.process_time() - cpu


def stage(root: Path, resolution: int, workers: int) -> tuple[float, float, float, float]:
    """Run the stage; return seconds, CPU seconds, the most memory in GB, and the seconds that it read for."""
    command = [sys.executable, *map(str, (root / "stage.py", ROOT, root, resolution, workers))]
    (root / "stage.py").write_text(STAGE)
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    seconds: dict[int, float] = {}
    most, over = [0.0], threading.Event()

    def watch() -> None:
        for look in itertools.count():
            if over.wait(0.1):
                return
            total = 0
            try:
                parent = psutil.Process(process.pid)
                family = [parent, *parent.children(recursive=True)]
            except psutil.Error:
                return
            for child in family:
                try:
                    seconds[child.pid] = sum(child.cpu_times()[:2])
                    # Seldom: the kernel walks through all of a process's memory for it.
                    total += 0 if look % 10 else child.memory_full_info().pss
                except psutil.Error:
                    continue
            most[0] = max(most[0], total / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read()
    if process.wait():
        sys.exit(said)
    took = time.perf_counter() - started
    over.set()
    watcher.join()
    count, rate = re.findall(r"/([\d,]+) images \(100%\) +([\d,]+)/s", said)[-1]
    reading = int(count.replace(",", "")) / int(rate.replace(",", ""))
    return took, sum(seconds.values()), most[0], reading


def spread(ratios: np.ndarray) -> str:
    """Write the median and the ends."""
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def main() -> None:
    """Make the pictures, run both in turn, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="200,000 files of 64×64 to 64 px, once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000, help="of 178×218; a tenth of large ones")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    settings = [(given.images, 178, 218, 64), (given.images // 10, 1024, 1024, 192)]
    if given.memory:
        settings, given.rounds = [(200_000, 64, 64, 64)], 1
    for count, width, height, side in settings:
        with tempfile.TemporaryDirectory(prefix="ganpipe-") as place:
            few, root = Path(place) / "few", Path(place) / "all"
            write(few, FEW, width, height, given.workers)
            write(root, count, width, height, given.workers)
            archive = str(root / "stages/fetch/images.zip")
            parts = [(archive, i, given.workers, side) for i in range(given.workers)]

            def loop(parts: list[tuple[str, int, int, int]] = parts) -> np.ndarray:
                with multiprocessing.Pool(given.workers) as pool:
                    clock, cpu = np.array(pool.starmap(bare, parts, chunksize=1)).T
                return np.array([clock.max(), cpu.sum()])

            loops, runs = [loop()], []
            for _ in range(given.rounds):
                runs.append(np.array([*stage(root, side, given.workers), *stage(few, side, given.workers)]))
                loops.append(loop())
        # Each run against the loops before and after it: what else the machine does changes within minutes.
        beside = (np.array(loops[:-1]) + np.array(loops[1:])) / 2
        whole, seconds, _, reading, _, fixed, _, start = np.array(runs).T
        fixed, start = np.median(fixed), np.median(start)
        faster = (count - FEW) / (reading - start) * beside[:, 0] / count
        more = (seconds - fixed) / (count - FEW) * count / beside[:, 1]
        memory = max(run[2] for run in runs)
        print(
            f"{count:,} files of {width}×{height} to {side} px, {given.workers} workers, medians of "
            f"{given.rounds}, load {os.getloadavg()[0]:.0f}\n"
            f"  bare          {count / np.median(beside[:, 0]):7,.0f} images/s, "
            f"{1e6 * np.median(beside[:, 1]) / count:7,.0f} µs of CPU an image\n"
            f"  stage         {(count - FEW) / np.median(reading - start):7,.0f} images/s while it reads, "
            f"{spread(faster)} of the bare\n"
            f"                {1e6 * np.median(seconds - fixed) / (count - FEW):7,.0f} µs of CPU an image, "
            f"{spread(more)} of the bare; besides, {fixed:.1f} s for start and report\n"
            f"                {count / np.median(whole):7,.0f} images/s with everything\n"
            f"  most memory   {memory:.2f} GB, all processes",
            flush=True,
        )


if __name__ == "__main__":
    main()
