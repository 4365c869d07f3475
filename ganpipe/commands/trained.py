"""Find a trained generator: a stage's output, a file, a DVC experiment or a model in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_folder
from ganpipe.experiments import revisions
from ganpipe.models.generator import TrainedGenerator, load_generator
from ganpipe.tracking import mirror as tracking

WEIGHTS = "generator.safetensors"


def find(source: str | None, root: Path = Path()) -> TrainedGenerator:
    """Load a generator.

    Args:
        source: a .safetensors file, a folder with one, the name of a DVC experiment, or an address of
            MLflow's such as models:/<id> or runs:/<id>/generator; None: the train stage's.
        root: the checkout.

    Raises:
        UserError: there is nothing of that name, or it is no generator.
    """
    if source is None:
        return _read(stage_folder(root, "train"))
    if ":/" in source:
        with _of_mlflow(source, root) as folder:
            return _read(folder)
    if Path(source).exists():
        return _read(Path(source))
    with _of_experiment(source, root) as folder:
        return _read(folder)


def _read(path: Path) -> TrainedGenerator:
    """Load a weights file, or the only one in a folder."""
    if path.is_dir() or not path.exists():
        files = sorted(path.rglob(WEIGHTS))
        if len(files) != 1:
            problem = "no generator" if not files else f"{len(files)} generators"
            raise UserError(f"{path}: {problem} in it; name a file {WEIGHTS}, or run the train stage")
        path = files[0]
    return load_generator(path)


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
    with revisions.open_repo(root) as repo:
        found = revisions.finished(repo).get(name)
    if not found:
        raise UserError(
            f"{name}: no such file, folder or DVC experiment; `dvc exp list -A` names the experiments"
        )
    from dvc.api import DVCFileSystem

    system = DVCFileSystem(str(root), rev=found[0].revision)
    with TemporaryDirectory(prefix="ganpipe-") as folder:
        try:
            (Path(folder) / WEIGHTS).write_bytes(system.read_bytes(f"stages/train/{WEIGHTS}"))
        except (OSError, KeyError):
            raise UserError(
                f"{name}: its generator is not in the cache; `dvc exp apply {name}` and `dvc repro` make it"
            ) from None
        yield Path(folder)
