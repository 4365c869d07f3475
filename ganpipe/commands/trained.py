"""Find a trained generator: in the train stage's output, a file, a DVC experiment or MLflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ganpipe.common.errors import UserError
from ganpipe.common.files import temporary_space
from ganpipe.common.stages import stage_folder
from ganpipe.experiments.revisions import finished, open_repo, read_outputs
from ganpipe.models.generator import TrainedGenerator, load_generator
from ganpipe.tracking.model import WEIGHTS
from ganpipe.tracking.store import address, first_line


def find_generator(source: str | None, root: Path = Path()) -> TrainedGenerator:
    """Load a trained generator: by default that of the train stage.

    The source may be a .safetensors file, a folder with one, the name of a DVC experiment, or an MLflow
    artifact URI such as models:/<id> or runs:/<id>/generator.

    Raises UserError: the source does not exist, or its files are not those of one generator.
    """
    with weights_file(source, root) as path:
        return load_generator(path)


@contextmanager
def weights_file(source: str | None, root: Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the weights file of `find_generator`'s source; a copy of an experiment's or MLflow's, if need be.

    `beside`: other outputs of the train stage to copy too, where an experiment has them in DVC's cache.

    Raises UserError: the source does not exist, or has not one weights file.
    """
    if source is None or Path(source).exists():
        yield _weights_in(Path(source) if source else stage_folder(root, "train"))
        return
    with temporary_space(), TemporaryDirectory(prefix="ganpipe-") as folder:
        if ":/" in source:
            _download_artifact(source, root, Path(folder))
        else:
            _copy_experiment(source, root, Path(folder), beside)
        yield _weights_in(Path(folder))


def _weights_in(path: Path) -> Path:
    """Return a weights file, or the only one in a folder and its subfolders."""
    if path.exists() and not path.is_dir():
        return path
    weights = sorted(path.rglob(WEIGHTS))
    if len(weights) != 1:
        problem = f"found {len(weights)} files {WEIGHTS}, expected 1"
        raise UserError(f"{path}: {problem}; name it, run `dvc pull`, or run the train stage")
    return weights[0]


def _download_artifact(uri: str, root: Path, folder: Path) -> None:
    """Download an MLflow artifact into a folder."""
    server = address(root)
    from mlflow.artifacts import download_artifacts

    try:
        download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=server)
    except Exception as error:  # each kind of artifact store raises its own
        problem = f"cannot be downloaded from MLflow at {server} ({first_line(error)})"
        raise UserError(f"{uri}: {problem}; `ganpipe ui` shows each run's artifacts") from error


def _copy_experiment(name: str, root: Path, folder: Path, beside: Sequence[str]) -> None:
    """Copy the weights of a DVC experiment, and outputs beside them, from DVC's cache into a folder."""
    with open_repo(root) as repo:
        experiments = finished(repo).get(name)
    if not experiments:
        raise UserError(f"{name}: no such file, folder or DVC experiment; `dvc exp list -A` names the latter")
    try:
        outputs = read_outputs(root, name, experiments[0].revision, [WEIGHTS])
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    for output in beside:
        with suppress(UserError):
            outputs |= read_outputs(root, name, experiments[0].revision, [output])
    for file, content in outputs.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
