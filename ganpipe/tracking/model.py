"""A generator as an MLflow model that loads without pickle and without a checkout of ganpipe."""

import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ganpipe.common import files
from ganpipe.common.code import import_closure

if TYPE_CHECKING:
    from ganpipe.tracking.run import TrackedRun

WEIGHTS = "generator.safetensors"
MODEL, DIGEST = "ganpipe.model", f"ganpipe.sha256.{WEIGHTS}"  # tags of the run
PACKAGES = ("mlflow", "numpy", "pillow", "pydantic", "safetensors", "torch")
ROOT = Path(__file__).resolve().parent.parent.parent  # holds the package ganpipe


def send_generator(run: "TrackedRun", folder: Path) -> None:
    """Log the generator in a train stage's folder as a run's model, unless the run has the same weights."""
    tags, digest = run.data.tags, files.sha256(folder / WEIGHTS)
    if MODEL in tags and tags.get(DIGEST) == digest:
        return
    from mlflow.entities import LoggedModelOutput

    client = run.client
    model = client.create_logged_model(
        run.info.experiment_id, name="generator", source_run_id=run.id, model_type="generator"
    )
    with TemporaryDirectory(prefix="ganpipe-") as temporary:
        write_model(folder, Path(temporary) / "model", model.model_id)
        client.log_model_artifacts(model.model_id, f"{temporary}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
    if MODEL in tags:  # a version in MLflow's registry names its model by the folder alone
        versions = client.search_model_versions(f"run_id='{run.id}'")
        if client.get_logged_model(tags[MODEL]).artifact_location not in {v.source for v in versions}:
            client.delete_logged_model(tags[MODEL])
    run.set_tags({MODEL: model.model_id, DIGEST: digest})


def write_model(folder: Path, path: Path, model_id: str | None = None) -> None:
    """Write the generator in a train stage's folder into a new folder, in MLflow's format."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    types = {"n": "long", "seed": "long", "z_scale": "double", "class": "string"}
    # Recording hides MLflow's advice to add type hints, from which it would infer another signature.
    with TemporaryDirectory(prefix="ganpipe-") as temporary, warnings.catch_warnings(record=True):
        from ganpipe.tracking.served import ARTIFACT, DEFAULTS

        for file in (*import_closure("ganpipe.tracking.served", ROOT), "ganpipe/params.py"):
            (Path(temporary) / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, Path(temporary) / file)
        outputs = Schema([ColSpec("long", "seed"), ColSpec("string", "png")])
        params = ParamSchema([ParamSpec(name, types[name], DEFAULTS[name]) for name in types])
        pyfunc.save_model(
            path,
            mlflow_model=Model(model_id=model_id),
            python_model=str(ROOT / "ganpipe/tracking/served.py"),
            artifacts={ARTIFACT: str(folder / WEIGHTS)},
            code_paths=[f"{temporary}/ganpipe"],
            signature=ModelSignature(outputs=outputs, params=params),
            input_example=(["images"], DEFAULTS | {"n": 4}),
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
        )
