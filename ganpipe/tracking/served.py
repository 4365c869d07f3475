"""The Python file that MLflow runs to load a generator; the files of ganpipe that it imports are saved too.

Slow imports are inside functions, because this file also runs when a model is written.
"""

import base64

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

ARTIFACT = "generator"  # the name of the weights among the model's artifacts
DEFAULTS = {"n": 1, "seed": 0, "z_scale": 1.0, "class": ""}  # class "": each seed draws its own
MAX_IMAGES = 1024  # in one answer


class Generator(PythonModel):
    """Returns n images of the seeds from `seed` on, as base64 of PNG files; it ignores its input."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network that the weights' header describes, in eval mode on the CPU."""
        from pathlib import Path

        from ganpipe.models.generator import load_generator

        self.generator = load_generator(Path(context.artifacts[ARTIFACT]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types
        """Return a dict of seed and png for each image; a parameter that is null has its default.

        A parameter out of its range raises an MlflowException: the server answers status 400 with its text.
        """
        from ganpipe.common.errors import UserError
        from ganpipe.models import generator as trained

        given = {name: value for name, value in (params or {}).items() if value is not None}
        n, seed, z_scale, name = (DEFAULTS | given).values()
        G, spec = self.generator.network, self.generator.spec
        try:
            trained.check_request(n, seed, z_scale, MAX_IMAGES)
            number = trained.class_number(spec, name) if name else None
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        images = trained.images_of(G, trained.latents_of_seeds(spec, seed, n, z_scale, number))
        pngs = (base64.b64encode(trained.png_bytes(image)).decode() for image in images)
        return [{"seed": seed + i, "png": png} for i, png in enumerate(pngs)]


set_model(Generator())
