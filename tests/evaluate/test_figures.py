"""The evaluate stage's pictures that are made of features and numbers."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganpipe.common import sheets
from ganpipe.evaluate import figures
from ganpipe.evaluate.extraction import Features
from ganpipe.evaluate.scores import Numbers, distance_names
from ganpipe.metrics.copies import neighbours


def test_the_nearest_training_images_are_beside_each_generated_one() -> None:
    """If it fails, the picture shows other images than the most suspicious, or wrong neighbours."""
    random = np.random.default_rng(0)
    train = random.integers(0, 255, (40, 64, 64, 1), dtype=np.uint8)
    rows = random.permutation(40)
    features = random.standard_normal((40, 5)).astype(np.float32)
    fakes = [features[:6] + 9, np.concatenate([features[7:8], features[3:8] + 5])]
    generated = random.integers(0, 255, (12, 64, 64, 1), dtype=np.uint8)
    near = neighbours(np.concatenate(fakes), features)
    order = np.argsort(near.relative_distance)
    assert order[0] == 6, "the copy"
    picture = np.asarray(
        figures.nearest_picture(Features(features, fakes, features[:0]), generated, train, rows).convert("L")
    )
    pitch, top = (4 * 64 + 6 + 12, 64 + 20 + 12), 2 * 24
    for position, i in enumerate(order):
        y, x = (
            top + position // 3 * pitch[1],
            position % 3 * pitch[0] + (picture.shape[1] - 3 * pitch[0] + 12) // 2,
        )
        cells = [picture[y + 1 : y + 63, x + k * 66 + 1 : x + k * 66 + 63] for k in range(4)]
        expected = [generated[i], *train[rows[near.indices[i]]]]
        assert all(np.array_equal(a, b[1:-1, 1:-1, 0]) for a, b in zip(cells, expected, strict=True)), (
            position
        )


@pytest.mark.parametrize("held_out", [0, 1, 8])
def test_features_of_few_or_equal_images_are_drawn(held_out: int) -> None:
    """If it fails, a collapsed generator or no held-out images end in a traceback after all the work."""
    random = np.random.default_rng(0)
    train, equal = random.standard_normal((20, 6)).astype(np.float32), np.ones((20, 6), np.float32)
    for fake in (train + 1, equal, train):
        picture = figures.features_picture(Features(train, [fake, fake], train[:held_out]))
        assert picture.size == (1100, 480)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("floors", [{}, {"kid_lite0_floor": 0.25, "precision_floor": 0.75}])
def test_the_curves_are_the_snapshots_numbers_over_their_epochs(
    monkeypatch: pytest.MonkeyPatch, floors: dict[str, float]
) -> None:
    """If it fails, the curves have wrong epochs or numbers, or lack the floor."""
    distances, epochs = distance_names("lite0"), [1, 5, 20]
    names = (*distances, *figures.SHARES)
    drawn: list[Any] = []
    render = sheets.plot_image

    def record(figure: Any) -> Image.Image:
        drawn.append(figure)
        return render(figure)

    monkeypatch.setattr(sheets, "plot_image", record)
    numbers: list[Numbers] = [{name: 0.1 * i + epoch for i, name in enumerate(names)} for epoch in epochs]
    all_floors = {f"{name}_floor": floors.get(f"{name}_floor") for name in names}
    picture = figures.snapshots_picture(epochs, numbers, distances, all_floors)
    assert picture.size == (1600, 400)
    lines = [line for axes in drawn[0].axes for line in axes.lines]
    curves = {line.get_label(): line.get_xydata().tolist() for line in lines if line.get_linestyle() == "-"}
    assert curves == {name: [[e, n[name]] for e, n in zip(epochs, numbers, strict=True)] for name in names}
    assert [line.get_ydata()[0] for line in lines if line.get_linestyle() == "--"] == list(floors.values())
    dashed = ["dashed" in axes.get_xlabel() for axes in drawn[0].axes]
    assert dashed == [bool(floors), False, False, bool(floors)]
    assert np.ptp(np.asarray(figures.snapshots_picture([], [], distances, {}))) > 200, "no words"
