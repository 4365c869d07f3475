"""Put a generator into MLflow as a model that loads without pickle and without a checkout of ganpipe."""

import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ganpipe.common import code as closure
from ganpipe.common import files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

NAME, MODEL, DIGEST = "generator", "ganpipe.model", "ganpipe.sha256.generator.safetensors"
PACKAGES = ("mlflow", "numpy", "pillow", "pydantic", "safetensors", "torch")
CODE = Path(__file__).resolve().parent.parent.parent


def send(client: "MlflowClient", info: "RunInfo", tags: Mapping[str, str], folder: Path) -> bool:
    """Log the generator in a train stage's folder as a run's model, if the run has another or none.

    Returns:
        Whether it was sent.
    """
    digest = files.sha256(folder / "generator.safetensors")
    if MODEL in tags and tags.get(DIGEST) == digest:
        return False
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(
        info.experiment_id, name=NAME, source_run_id=info.run_id, model_type="generator"
    )
    with TemporaryDirectory(prefix="ganpipe-") as place:
        write(folder, Path(place) / "model", model.model_id)
        client.log_model_artifacts(model.model_id, f"{place}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    if MODEL in tags:
        client.delete_logged_model(tags[MODEL])
    client.set_tag(info.run_id, MODEL, model.model_id)
    client.set_tag(info.run_id, DIGEST, digest)
    return True


def write(folder: Path, path: Path, number: str | None = None) -> None:
    """Write the generator in a train stage's folder as a model of MLflow's into a new folder."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    # MLflow asks for type hints, of which it would make its own signature; it sets its own filter on that.
    silent = warnings.catch_warnings(record=True)
    with TemporaryDirectory(prefix="ganpipe-") as place, silent:
        from ganpipe.tracking.served import DEFAULTS, WEIGHTS

        for file in (*closure.import_closure("ganpipe.tracking.served", CODE), "ganpipe/params.py"):
            (Path(place) / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CODE / file, Path(place) / file)
        kinds = {"n": "long", "seed": "long", "z_scale": "double"}
        pyfunc.save_model(
            path,
            mlflow_model=Model(model_id=number),
            python_model=str(CODE / "ganpipe/tracking/served.py"),
            artifacts={WEIGHTS: str(folder / "generator.safetensors")},
            code_paths=[f"{place}/ganpipe"],
            signature=ModelSignature(
                outputs=Schema([ColSpec("long", "seed"), ColSpec("string", "png")]),
                params=ParamSchema([ParamSpec(name, kind, DEFAULTS[name]) for name, kind in kinds.items()]),
            ),
            input_example=(["images"], DEFAULTS | {"n": 4}),
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
        )
