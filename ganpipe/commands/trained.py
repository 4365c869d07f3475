"""Find a trained generator: a stage's output, a file, a DVC experiment or a model in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.experiments import revisions
from ganpipe.models import generator as snapshot
from ganpipe.params import Model
from ganpipe.tracking import mirror as tracking

FOLDER, WEIGHTS, DESCRIPTION = Path("stages/train"), "generator.safetensors", "model.json"
HEADER = "ganpipe"  # the key of a weights file's header that holds what model.json does


@dataclass(frozen=True)
class Trained:
    """A generator, ready to be used.

    Attributes:
        G: the network, in eval mode on the CPU.
        model: its section of the params.
        resolution: pixels a side of its images.
        channels: 1 for grey, 3 for colour.
        described: JSON, what model.json holds.
    """

    G: nn.Module
    model: Model
    resolution: int
    channels: int
    described: str


def find(source: str | None, root: Path = Path()) -> Trained:
    """Load a generator.

    Args:
        source: a .safetensors file, a folder with one, the name of a DVC experiment, or an address of
            MLflow's such as models:/<id> or runs:/<id>/generator; None: the train stage's.
        root: the checkout.

    Raises:
        UserError: there is nothing of that name, or it is no generator.
    """
    if source is None:
        return _read(root / FOLDER)
    if ":/" in source:
        with _of_mlflow(source, root) as folder:
            return _read(folder)
    if Path(source).exists():
        return _read(Path(source))
    with _of_experiment(source, root) as folder:
        return _read(folder)


def _read(place: Path) -> Trained:
    """Read a weights file, or the one in a folder; its description is in its header or a file above it."""
    if place.is_dir() or not place.exists():
        found = sorted(place.rglob(WEIGHTS))
        if len(found) != 1:
            problem = "no generator" if not found else f"{len(found)} generators"
            raise UserError(f"{place}: {problem} in it; name a file {WEIGHTS}, or run the train stage")
        place = found[0]
    try:
        with safe_open(place, "pt") as file:
            text = (file.metadata() or {}).get(HEADER, "")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: no readable weights ({error}); expected a .safetensors file") from None
    above = (folder / DESCRIPTION for folder in (place.parent, place.parent.parent))
    where = place if text else next((path for path in above if path.is_file()), None)
    if where is None:
        raise UserError(
            f"{place}: nothing says what network these weights are of; put the {DESCRIPTION} of their "
            "training beside them"
        )
    text = text or where.read_text(encoding="utf-8", errors="replace")
    model, resolution, channels = snapshot.parse_description(text, where)
    return Trained(snapshot.load(place, model, resolution, channels), model, resolution, channels, text)


@contextmanager
def _of_mlflow(address: str, root: Path) -> Iterator[Path]:
    """Give a folder with what MLflow holds under an address."""
    uri = tracking.address(root)
    from mlflow.artifacts import download_artifacts

    with TemporaryDirectory(prefix="ganpipe-") as folder:
        try:
            download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=uri)
        except Exception as error:  # each store has its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{address}: MLflow at {uri} does not give it ({reason}); its UI shows models' addresses"
            ) from None
        yield Path(folder)


@contextmanager
def _of_experiment(name: str, root: Path) -> Iterator[Path]:
    """Give a folder with the train stage's results of a DVC experiment, out of DVC's cache."""
    with revisions.opened(root) as repo:
        found = revisions.finished(repo).get(name)
    if not found:
        raise UserError(
            f"{name}: no such file, folder or DVC experiment; `dvc exp list -A` names the experiments"
        )
    from dvc.api import DVCFileSystem

    system = DVCFileSystem(str(root), rev=found[0].revision)
    with TemporaryDirectory(prefix="ganpipe-") as folder:
        try:
            for file in (WEIGHTS, DESCRIPTION):
                (Path(folder) / file).write_bytes(system.read_bytes(f"{FOLDER}/{file}"))
        except (OSError, KeyError):
            raise UserError(
                f"{name}: its generator is not in the cache; `dvc exp apply {name}` and `dvc repro` make it"
            ) from None
        yield Path(folder)
