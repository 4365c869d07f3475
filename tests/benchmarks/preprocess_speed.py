"""Speed and memory of preprocess, compared with a bare loop of Pillow's decoder and resize on every core.

Two sets of generated JPEG files, 178×218 to 64 px and 1,024×1,024 to 192 px, go through the stage and
through a bare loop in as many processes. The two alternate every half second, because the machine's load
varies. The figures are medians and extremes of a few runs, of the time in which the stage reads, without its
start and report, and of the whole stage. CPU time is of all processes. --memory uses 200,000 small files.

    python tests/benchmarks/preprocess_speed.py
    python tests/benchmarks/preprocess_speed.py --memory
"""

import argparse
import hashlib
import io
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

# Seconds.
TURN = 0.5
ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import sys
from pathlib import Path
from ganpipe import params
from ganpipe.preprocess.stage import preprocess
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

    # Each small file has its own noise: thousands of similar ones would make the search for copies long.
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
    """Write what fetch would: an archive of distinct pictures, and its manifest."""
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


def bare(archive: str, first: int, step: int, resolution: int, done: Any) -> None:
    """Decode and resize every step-th picture for ever, and count them in `done`."""
    with zipfile.ZipFile(archive) as opened:
        files = [opened.read(name) for name in opened.namelist()[first::step]]
    for data in itertools.cycle(files):
        image = Image.open(io.BytesIO(data))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))
        done.value += 1


@dataclass
class Run:
    """A run of the stage and the bare loop: images a second, CPU seconds an image, GB, seconds."""

    rate: float
    cpu: float
    bare: float
    bare_cpu: float
    memory: float
    whole: float


def stage(root: Path, resolution: int, workers: int, count: int) -> Run:
    """Run the stage and the bare loop alternately, TURN seconds each while the other is stopped."""
    archive = str(root / "stages/fetch/images.zip")
    counts = [multiprocessing.Value("L", 0, lock=False) for _ in range(workers)]
    loops = [
        multiprocessing.Process(target=bare, args=(archive, i, workers, resolution, own), daemon=True)
        for i, own in enumerate(counts)
    ]
    for loop in loops:
        loop.start()
    while not all(own.value for own in counts):
        time.sleep(0.01)
    beside = [psutil.Process(loop.pid) for loop in loops]
    stop(beside)
    command = [sys.executable, *map(str, (root / "stage.py", ROOT, root, resolution, workers))]
    (root / "stage.py").write_text(STAGE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = root / "log.txt"
    with open(log, "wb") as file:
        parent = psutil.Popen(command, stderr=file, env=environment)
    took, bare_took, memory, samples = 0.0, 0.0, 0.0, []
    while parent.poll() is None:
        started = time.monotonic()
        with suppress(psutil.TimeoutExpired):
            parent.wait(TURN)
        took += time.monotonic() - started
        with suppress(psutil.Error):
            family = [parent, *parent.children(recursive=True)]
            stop(family)
            done = sum(process.io_counters().write_chars for process in family[1:]) // (3 * resolution**2)
            samples.append(
                (done, took, used(family), sum(own.value for own in counts), bare_took, used(beside))
            )
            if not len(samples) % 8:  # Rarely: the kernel walks through all of the processes' memory.
                memory = max(memory, sum(process.memory_full_info().pss for process in family) / 1e9)
            started = time.monotonic()
            resume(beside)
            time.sleep(TURN)
            stop(beside)
            bare_took += time.monotonic() - started
            resume(family)
    for loop in loops:
        loop.kill()
    if parent.returncode:
        sys.exit(log.read_text())
    # While all workers have work: without the first and the last files.
    edge = min(256 * workers, count // 10)
    reading = np.array([sample for sample in samples if edge < sample[0] < count - edge])
    if len(reading) < 3:
        sys.exit(f"{count:,} images are read within {len(samples)} turns; use more (--images)")
    done, seconds, cpu, bare_done, bare_seconds, bare_cpu = reading[-1] - reading[0]
    return Run(done / seconds, cpu / done, bare_done / bare_seconds, bare_cpu / bare_done, memory, took)


def used(processes: list[Any]) -> float:
    """Return the CPU seconds that processes have used."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def stop(processes: list[Any]) -> None:
    """Stop processes with SIGSTOP."""
    for process in processes:
        process.suspend()


def resume(processes: list[Any]) -> None:
    """Resume stopped processes."""
    for process in processes:
        process.resume()


def spread(ratios: np.ndarray) -> str:
    """Format the median and the extremes."""
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def main() -> None:
    """Make the pictures, run the stage beside the bare loop, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="200,000 files of 64×64 to 64 px, once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="of 178×218; a tenth of large ones")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    settings = [(given.images, 178, 218, 64), (given.images // 10, 1024, 1024, 192)]
    if given.memory:
        settings, given.rounds = [(200_000, 64, 64, 64)], 1
    for count, width, height, side in settings:
        with tempfile.TemporaryDirectory(prefix="ganpipe-") as folder:
            root = Path(folder)
            write(root, count, width, height, given.workers)
            runs = [stage(root, side, given.workers, count) for _ in range(given.rounds)]
        rate, cpu, bare_rate, bare_cpu, memory, whole = np.array([astuple(run) for run in runs]).T
        middle = [np.median(values) for values in (bare_rate, 1e6 * bare_cpu, rate, 1e6 * cpu)]
        lines = [
            f"{count:,} files of {width}×{height} to {side} px, {given.workers} workers",
            f"  bare          {middle[0]:7,.0f} images/s, {middle[1]:7,.0f} µs of CPU an image",
            f"  stage         {middle[2]:7,.0f} images/s, {spread(rate / bare_rate)} of the bare",
            f"                {middle[3]:7,.0f} µs of CPU an image, {spread(cpu / bare_cpu)} of the bare",
            f"                {count / np.median(whole):7,.0f} images/s with everything",
            f"  most memory   {memory.max():.2f} GB, all processes",
        ]
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
