"""The sliced Wasserstein distance of patches, against a plain writing in float64, and what it sees."""

import numpy as np
import pytest
import torch
from conftest import digits
from PIL import Image, ImageFilter
from scipy.ndimage import convolve

from ganpipe.common import seeds
from ganpipe.metrics import swd as module
from ganpipe.metrics.swd import patches, pyramid, swd

BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def coloured(count: int, side: int, seed: int) -> np.ndarray:
    """Digits in random colours on other colours, uint8 count×side×side×3."""
    random, images = np.random.default_rng(seed), []
    for digit in digits()[random.permutation(5000)[:count], :, :, 0]:
        strength = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))
        ink, paper = random.integers(0, 256, (2, 3))
        images.append(paper + (ink - paper) * (strength[..., None] / 255))
    return np.stack(images).astype(np.uint8)


def distances(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[int, float]:
    """Compare two sets of images."""
    a, b = (patches(x, np.arange(len(x)), seed, name) for x, name in ((real, "real"), (fake, "fake")))
    return swd(a, b, seed)


def plain_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Split one channel float64 H×W by scipy, as the paper's code does."""
    if min(image.shape) < 32 or any(length % 2 for length in image.shape):
        return [image]
    small = convolve(image, BINOMIAL, mode="mirror")[::2, ::2]
    spread = np.zeros(image.shape)
    spread[::2, ::2] = small
    return [image - convolve(spread, 4 * BINOMIAL, mode="mirror"), *plain_pyramid(small)]


def plain_patches(images: np.ndarray, seed: int, purpose: str) -> list[np.ndarray]:
    """Cut patches one by one; positions are drawn as documented: (seed, purpose and side, 0), y before x."""
    channels = [
        [plain_pyramid(image[:, :, c].astype(float)) for c in range(image.shape[2])] for image in images
    ]
    found = []
    for level in range(len(channels[0][0])):
        maps = [np.stack([channel[level] for channel in image]) for image in channels]
        height, width = maps[0].shape[1:]
        random = seeds.generator(seed, f"swd/{purpose}/{min(height, width)}", 0)
        count = min(128, 2**14 // len(images))
        ys, xs = (torch.randint(n - 6, (len(maps), count, 1), generator=random) for n in (height, width))
        cut = np.stack(
            [
                maps[i][:, y : y + 7, x : x + 7]
                for i in range(len(maps))
                for y, x in zip(ys[i, :, 0].tolist(), xs[i, :, 0].tolist(), strict=True)
            ]
        )
        for c in range(cut.shape[1]):
            cut[:, c] -= cut[:, c].mean()
            cut[:, c] /= cut[:, c].std()
        found.append(cut.transpose(0, 2, 3, 1).reshape(len(cut), -1))
    return found


@pytest.mark.parametrize(("side", "width"), [(28, 28), (64, 64), (96, 96), (64, 80)])
def test_it_is_the_distance_written_plainly(side: int, width: int) -> None:
    """If it fails, the pyramid, the patches, their normalisation or the distance are not the paper's."""
    real, fake = (coloured(6, max(side, width), seed)[:, :side, :width] for seed in (1, 2))
    expected: dict[int, float] = {}
    for a, b in zip(plain_patches(real, 5, "real"), plain_patches(fake, 5, "fake"), strict=True):
        level = side >> len(expected)
        random = seeds.generator(5, "swd/directions", level)
        total = 0.0
        for direction in torch.randn(128, a.shape[1], generator=random).double().numpy():
            unit = direction / np.sqrt((direction**2).sum())
            total += np.abs(np.sort(a @ unit) - np.sort(b @ unit)).mean() / 128
        expected[level] = total
    found = distances(real, fake, 5)
    assert list(found) == list(expected) and len(found) == {28: 1, 64: 3, 96: 3}[side]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_levels_add_up_to_the_image() -> None:
    """If it fails, what one level shows is missing or shown by another one too."""
    x = torch.from_numpy(coloured(2, 64, 3)).permute(0, 3, 1, 2).double()
    levels = pyramid(x)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    for level in levels[-2::-1]:
        small, spread = levels[-1], torch.zeros_like(level)
        spread[:, :, ::2, ::2] = 4 * small
        levels.append(level + module._blurred(spread))
    torch.testing.assert_close(levels[-1], x)


def test_equal_sets_are_at_distance_zero_and_colours_scale_out() -> None:
    """If it fails, the zero of the scale is none, or brightness and contrast, normalised away, count."""
    images = coloured(40, 64, 4)
    rows = np.arange(40)
    same = patches(images, rows, 0, "real")
    assert set(swd(same, same, 0).values()) == {0.0}
    darker = patches((images // 2 // 2 * 2).astype(np.uint8), rows, 0, "real")
    reference = patches(images // 2 // 2 * 2 + 60, rows, 0, "real")
    assert max(swd(reference, darker, 0).values()) < 1e-5


def test_each_level_sees_its_own_detail_and_chance_is_less() -> None:
    """If it fails, a level is blind to its detail, or sees that of another one."""
    real, fake = coloured(100, 64, 5), coloured(100, 64, 6)
    random = np.random.default_rng(0)

    def noisy(cells: int) -> np.ndarray:
        size = 64 // cells
        noise = random.normal(0, 60, (100, cells, cells, 1)).repeat(size, 1).repeat(size, 2)
        return np.clip(fake * 0.5 + 64 + noise, 0, 255).astype(np.uint8)

    blurred = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(1))) for i in fake])
    chance, fine, coarse = (distances(real, images) for images in (fake, noisy(64), noisy(8)))
    assert fine[64] > 5 * chance[64] and distances(real, blurred)[64] > 1.3 * chance[64]
    assert coarse[16] > 1.5 * chance[16] > 1.2 * fine[16]


def test_images_without_content_or_levels_have_numbers_or_none() -> None:
    """If it fails, a collapsed generator or a tiny image ends in NaN or a traceback."""
    real = coloured(20, 64, 7)
    grey = distances(real, np.full_like(real, 127))
    assert all(np.isfinite(value) and value > 0.1 for value in grey.values())
    assert distances(real[:, :6, :6], real[:, :6, :6]) == {}
    assert list(distances(real[..., :1], real[..., :1])) == [64, 32, 16]


def test_large_images_are_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, images of 1,024 px take minutes, or those behind the first ones change the number."""
    monkeypatch.setattr(module, "PIXELS", 12 * 64 * 64 * 3)
    monkeypatch.setattr(module, "LEAST_IMAGES", 8)
    images = coloured(30, 64, 8)
    some, all_ = patches(images, np.arange(12), 0, "real"), patches(images, np.arange(30), 0, "real")
    assert all(torch.equal(some[side], all_[side]) for side in (64, 32, 16))
