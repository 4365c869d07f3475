r"""Measure what KID and layout KID see: images changed in known ways, against as many unchanged ones.

    python tests/benchmarks/metric_directions.py celeba5k.zip --crop 80 --side 64 --count 400
    python tests/benchmarks/metric_directions.py anime6k.zip --crop 96 --side 32 --network lite2 \
        --also samples.npy

Needs a folder, zip or tar of colour pictures of one size. Three disjoint random sets are cropped to the
central square and resized: the reference, held-out images (their score is the floor), and the images that are
changed. `--also` adds generated images, uint8 N×side×side×3, of which the first COUNT are scored. Prints a
markdown table: both numbers and their standard deviation over the subsets; the same two distances under a
Gaussian kernel; the mean square of the features, contrast and diversity relative to the reference, and the
mark of `ganpipe compare`.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import ganpipe  # noqa: E402, F401, I001  (before torch: it tells OpenMP's threads how to wait)
import numpy as np  # noqa: E402
import typer  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402

from ganpipe.commands.score import PROTOCOL, read_images  # noqa: E402
from ganpipe.evaluate.scores import degenerate  # noqa: E402
from ganpipe.metrics import extractors, lite0, manifold  # noqa: E402
from ganpipe.metrics.kid import gaussian_mmd, kid  # noqa: E402


def main(
    pictures: Path,
    crop: Annotated[int, typer.Option(help="Pixels a side of the central square.")] = 80,
    side: Annotated[int, typer.Option(help="Pixels a side after resizing.")] = 64,
    count: Annotated[int, typer.Option(help="Images in each set.")] = 400,
    resolution: Annotated[int, typer.Option(help="Pixels a side that the network sees.")] = 128,
    network: Annotated[str, typer.Option(help="lite0 or lite2.")] = "lite0",
    also: Annotated[list[Path] | None, typer.Option(help="Generated images.")] = None,
) -> None:
    """Print the table."""
    images = read_images(pictures)
    chosen = np.random.default_rng(0).permutation(len(images))[: 3 * count]
    top, left = ((length - crop) // 2 for length in images.shape[1:3])
    squares = [Image.fromarray(images[i, top : top + crop, left : left + crop]) for i in chosen]
    parts = np.stack(
        [np.asarray(square.resize((side, side), Image.Resampling.LANCZOS)) for square in squares]
    )
    reference, held_out, real = np.split(parts, 3)
    extractor = extractors.build(network, resolution, None)

    def seen(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        rows = lite0.extract(extractors.Seen(extractor), part, extractors.batch_size(extractor), "cpu")
        features, contrast, layout = np.split(rows, [extractor.dimension, extractor.dimension + 1], 1)
        return features, layout, float(contrast.mean())

    expected = seen(reference)
    spread = manifold.balls(expected[0], PROTOCOL.neighbours).spread
    header = "KID | layout KID | Gaussian | its layout | features² | contrast | diversity"
    print(f"| images | {header} | mark |\n|{'---|' * 9}")
    generated = {path.stem: np.load(path)[:count] for path in also or []}
    for name, part in {"held-out real (floor)": held_out, **changes(real), **generated}.items():
        found = seen(part)
        square = float(np.square(found[0]).mean() / np.square(expected[0]).mean())
        numbers = {
            "contrast": found[2] / expected[2],
            "diversity": manifold.balls(found[0], PROTOCOL.neighbours).spread / spread,
        }
        pairs = [*zip(expected[:2], found[:2], strict=True)]
        kids = [kid(a, b, PROTOCOL.kid_subsets, PROTOCOL.kid_subset_size, 0) for a, b in pairs]
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in kids]
        cells += [f"{gaussian_mmd(a, b):.3f}" for a, b in pairs]
        cells += [f"{n:.2f}" for n in (square, *numbers.values())]
        print(f"| {name} | {' | '.join(cells)} | {degenerate(numbers) or ''} |", flush=True)


def changes(real: np.ndarray) -> dict[str, np.ndarray]:
    """Change images uint8 N×side×side×3: what was done → the images."""
    random, half = np.random.default_rng(0), real.shape[1] // 2

    def blurred(sd: float) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(sd))) for i in real])

    def noisy(images: np.ndarray, sd: float) -> np.ndarray:
        return np.clip(images + random.normal(0, sd, images.shape), 0, 255).astype(np.uint8)

    grey = np.full_like(real, 127)
    return {
        "other real": real,
        "mirrored": real[:, :, ::-1],
        "upside down": real[:, ::-1],
        "quarters swapped": np.roll(real, (half, half), (1, 2)),
        "blur, sd 1": blurred(1),
        "blur, sd 2": blurred(2),
        "blur, sd 16": blurred(16),
        "noise, sd 20": noisy(real, 20),
        "plain grey": grey,
        "plain grey, noise of sd 3": noisy(grey, 3),
        "a grey a picture": (grey * random.uniform(0, 2, (len(real), 1, 1, 1))).astype(np.uint8),
        "one face, noise of sd 3": noisy(real[:1].repeat(len(real), 0), 3),
    }


if __name__ == "__main__":
    typer.run(main)
