"""The two image conventions."""

import numpy as np
import torch

from ganpipe.models.pixels import to_float, to_uint8


def test_every_grey_level_survives_the_round_trip() -> None:
    """A failure means that generated images are brighter or darker than real ones, which metrics detect."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(torch.from_numpy(levels))
    assert floats.shape == (1, 1, 16, 16) and floats.min() == -1 and floats.max() == 1
    assert np.array_equal(to_uint8(floats), levels)


def test_values_outside_the_range_are_clipped() -> None:
    """A failure means that uint8 overflows, so that white turns black."""
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_axes_and_channels_keep_their_order() -> None:
    """A failure means that colours or axes are swapped between disk and network."""
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 1, 2, 0] = 255
    floats = to_float(torch.from_numpy(image))
    assert floats[0, 0, 1, 2] == 1 and floats.sum() == -floats.numel() + 2
