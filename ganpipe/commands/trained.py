"""Find a trained generator: in the train stage's output, a file, a DVC experiment or MLflow."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file, stage_folder
from ganpipe.experiments import revisions
from ganpipe.models.generator import TrainedGenerator, load_generator
from ganpipe.tracking import store

WEIGHTS = "generator.safetensors"


def find_generator(source: str | None, root: Path = Path()) -> TrainedGenerator:
    """Load a trained generator.

    Args:
        source: a .safetensors file, a folder with one, the name of a DVC experiment, or an MLflow artifact
            URI such as models:/<id> or runs:/<id>/generator; None: the train stage's output.
        root: the checkout.

    Raises:
        UserError: the source does not exist, or its files are not those of one generator.
    """
    if source is None:
        return _load(stage_folder(root, "train"))
    if Path(source).exists():
        return _load(Path(source))
    with TemporaryDirectory(prefix="ganpipe-") as folder:
        fetch = _download_artifact if ":/" in source else _copy_experiment
        fetch(source, root, Path(folder))
        return _load(Path(folder))


def _load(path: Path) -> TrainedGenerator:
    """Load a weights file, or the only one in a folder and its subfolders."""
    if path.is_dir() or not path.exists():
        weights = sorted(path.rglob(WEIGHTS))
        if len(weights) != 1:
            raise UserError(
                f"{path}: found {len(weights)} files {WEIGHTS}, expected 1; name it, or run the train stage"
            )
        path = weights[0]
    return load_generator(path)


def _download_artifact(uri: str, root: Path, folder: Path) -> None:
    """Download an MLflow artifact into a folder."""
    server = store.address(root)
    from mlflow.artifacts import download_artifacts

    try:
        download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=server)
    except Exception as error:  # each kind of artifact store raises its own
        raise UserError(
            f"{uri}: cannot be downloaded from MLflow at {server} ({store.first_line(error)}); `ganpipe ui` "
            f"shows each run's artifacts"
        ) from None


def _copy_experiment(name: str, root: Path, folder: Path) -> None:
    """Copy the weights of a DVC experiment from DVC's cache into a folder."""
    with revisions.open_repo(root) as repo:
        experiments = revisions.finished(repo).get(name)
    if not experiments:
        raise UserError(
            f"{name}: no such file, folder or DVC experiment; `dvc exp list -A` names the experiments"
        )
    from dvc.api import DVCFileSystem

    system = DVCFileSystem(str(root), rev=experiments[0].revision)
    try:
        (folder / WEIGHTS).write_bytes(system.read_bytes(stage_file(Path(), WEIGHTS).as_posix()))
    except (OSError, KeyError):
        raise UserError(
            f"{name}: {WEIGHTS} is not in DVC's cache; restore it with `dvc exp apply {name}` and `dvc repro`"
        ) from None
