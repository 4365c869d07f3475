"""The sample stage: a generator in, images and a grid of them out."""

import json
from pathlib import Path

import numpy as np

from ganpipe import files, pictures, snapshot
from ganpipe.errors import UserError
from ganpipe.params import Model, Sample
from ganpipe.progress import Progress

FOLDER = Path("stages/sample")
TRAINED = Path("stages/train")


def sample(params: Sample, root: Path = Path(), device: str = "cpu") -> None:
    """Generate `params.count` images, one seed each, and write samples.npy (uint8 N×H×W×C) and grid.png.

    Raises:
        UserError: there is no trained generator, or its files are damaged.
    """
    try:
        description = json.loads((root / TRAINED / "model.json").read_text())
        model = Model(**{key: description[key] for key in Model.model_fields})
        resolution, channels = int(description["resolution"]), int(description["channels"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{root / TRAINED}/model.json: no readable description ({error}); run the train stage"
        ) from None
    G = snapshot.load(root / TRAINED / "generator.safetensors", model, resolution, channels).to(device)

    shape = (params.count, resolution, resolution, channels)
    with files.whole(root / FOLDER / "samples.npy") as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with Progress("sample", params.count) as progress:
            for first in range(0, params.count, snapshot.BATCH):
                count = min(snapshot.BATCH, params.count - first)
                z = snapshot.z_of_seeds(model, params.seed + first, count, params.z_scale)
                images = snapshot.images_of(G, z)
                file.write(images.tobytes())
                if first == 0:
                    columns = pictures.columns_for(resolution)
                    grid = pictures.sheet(images[: columns * columns], columns)
                progress.advance(count)
    with files.whole(root / FOLDER / "grid.png") as temporary:
        grid.save(temporary, "PNG")
