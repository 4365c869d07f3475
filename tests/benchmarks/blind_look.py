"""Compare generators with each other, or with real images, by eye and without knowing which is which.

    python tests/benchmarks/blind_look.py prepare OUT --repeats 5 beyond-0:dcgan-0 beyond-1:dcgan-1
    python tests/benchmarks/blind_look.py count OUT 'left right same …'

`prepare` writes OUT/01.png, 02.png …: 8×8 images of each generator of a pair, sides and pairs in random
order, and key.json, which is not to be opened before the choices are written down. A generator is what
`ganpipe generate` accepts: an experiment of this checkout, a file or a folder. In place of one, an .npy file
of real images, uint8 N×H×W×C, shows 64 of its rows. No two pictures have the same seeds or rows, so that none
is recognized.
`count` reads a choice for each picture and prints how often each generator of a pair was preferred.
"""

import json
import secrets
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

from ganpipe.commands.trained import find_generator  # noqa: E402
from ganpipe.common.sheets import captioned, cells, sheet  # noqa: E402
from ganpipe.models.generator import images_of, z_of_seeds  # noqa: E402

COUNT, COLUMNS = 64, 8
FIRST_SEED = 10_000  # beyond the seeds whose images a run shows
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def prepare(out: Path, pairs: list[str], repeats: Annotated[int, typer.Option(min=1)] = 1) -> None:
    """Write a picture for each repeat of each pair A:B, in random order, and the key."""
    out.mkdir(parents=True)
    tasks = list(enumerate(pair for pair in pairs for _ in range(repeats)))
    random, key = secrets.SystemRandom(), {}
    for number, (place, pair) in enumerate(random.sample(tasks, len(tasks)), 1):
        names = random.sample(pair.split(":"), 2)
        sides = []
        for name in names:
            images = shown(name, place)
            sides.append(np.asarray(sheet(cells(images, COLUMNS), COLUMNS).convert("RGB")))
        gap = np.full((len(sides[0]), 24, 3), 255, np.uint8)
        picture = sheet(np.concatenate([sides[0], gap, sides[1]], 1)[None], 1)
        captioned(picture, f"{number:02}: left or right?").save(out / f"{number:02}.png")
        key[f"{number:02}"] = {"pair": pair, "left": names[0], "right": names[1]}
    (out / "key.json").write_text(json.dumps(key, indent=1))
    print(f"{len(tasks)} pictures: {out}; write down left, right or same for each, then count")


def shown(name: str, place: int) -> np.ndarray:
    """Return COUNT images of a generator or of an .npy file, uint8 N×H×W×C, others for each place."""
    if name.endswith(".npy"):
        images = np.load(name, mmap_mode="r")
        # Shuffled, because a set with classes is in their order.
        rows = np.random.default_rng(FIRST_SEED).permutation(len(images))[COUNT * place :][:COUNT]
        if len(rows) < COUNT:
            raise typer.BadParameter(f"{name}: has no {COUNT * (place + 1)} images")
        return np.asarray(images[rows])
    generator = find_generator(name)
    z = z_of_seeds(generator.spec.params, FIRST_SEED + COUNT * place, COUNT, 1.0)
    return images_of(generator.network, z)


@app.command()
def count(out: Path, choices: str) -> None:
    """Print how often each generator was preferred; a choice is left, right or same, in this order."""
    key, chosen = json.loads((out / "key.json").read_text()), choices.split()
    if len(chosen) != len(key) or not set(chosen) <= {"left", "right", "same"}:
        raise typer.BadParameter(f"{len(key)} pictures need as many words of left, right, same")
    for pair in sorted({entry["pair"] for entry in key.values()}):
        entries = [(key[name], side) for name, side in zip(key, chosen, strict=True)]
        preferred = Counter(entry.get(side, "same") for entry, side in entries if entry["pair"] == pair)
        print(pair, dict(preferred))


if __name__ == "__main__":
    app()
