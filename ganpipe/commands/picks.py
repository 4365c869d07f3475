"""Picked images: the JSON file that `ganpipe explore` writes and `ganpipe generate --picks` repeats."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.models.generator import SEEDS

MAX_BYTES = 20_000_000  # of a file: 24 picks of 10,000 elements have a quarter of it


@dataclass(frozen=True)
class Pick:
    """A picked image: the seed that it began with, and its latent vector, float32 nz on the CPU."""

    seed: int
    z: torch.Tensor


def file_names(picks: Sequence[Pick]) -> list[str]:
    """Name each pick's PNG file by its number and its seed."""
    return [f"{i:02d}-seed-{pick.seed}.png" for i, pick in enumerate(picks, 1)]


def picks_json(picks: Sequence[Pick], weights_sha256: str, epoch: int | None) -> str:
    """Describe picks; numbers are written in full, so that each z is read back exactly.

    `epoch` is that of the snapshot whose weights these are, None for the trained generator.
    """
    listed = [{"seed": pick.seed, "z": pick.z.tolist()} for pick in picks]
    return json.dumps({"weights_sha256": weights_sha256, "epoch": epoch, "picks": listed}) + "\n"


def read_picks(path: Path, weights: Path, nz: int) -> list[Pick]:
    """Read the picks of the generator in the file `weights`, which has nz latent elements.

    Raises UserError: the file is missing, too large or damaged, or was made with other weights.
    """
    if not path.is_file():
        raise UserError(f"--picks: {path}: no such file; give the picks.json of a zip of `ganpipe explore`")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"--picks: {path}: larger than {MAX_BYTES / 1e6:.0f} MB, so not of `ganpipe explore`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sha256, epoch = content["weights_sha256"], content["epoch"]
        picks = [_pick(**entry) for entry in content["picks"]]
        if not picks:
            raise ValueError("it has no picks")
    except KeyError as error:
        raise UserError(f"--picks: {path}: the key {error} is missing; download it again") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error)[:200].replace("\n", " ")
        raise UserError(f"--picks: {path}: not readable ({reason}); download it again") from None
    if sha256 != (here := files.sha256(weights)):
        snapshot = f" of the snapshot after epoch {epoch!r:.9}" if epoch is not None else ""
        made = f"made with other weights{snapshot} (sha256 {sha256!r:.10}…) than these ({here[:9]}…)"
        raise UserError(f"--picks: {path}: {made}; give the SOURCE that was explored")
    if wrong := next((len(pick.z) for pick in picks if len(pick.z) != nz), None):
        raise UserError(f"--picks: {path}: found a z of {wrong} elements, but the generator takes {nz}")
    return picks


def _pick(seed: Any, z: Any) -> Pick:
    """Check the values of a pick in a file, and raise ValueError for those that were never written."""
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed!r:.30}")
    vector = torch.tensor([float(value) for value in z if type(value) in (int, float)])
    if not isinstance(z, list) or not z or len(vector) != len(z) or not all(map(math.isfinite, vector)):
        raise ValueError("a z that is not a list of finite numbers")
    return Pick(seed, vector)
