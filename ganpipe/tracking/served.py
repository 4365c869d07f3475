"""The generator as a model of MLflow's, from code and weights, no pickle; MLflow runs this file to load it.

The files of ganpipe that it needs travel with it. Nothing slow is imported where a model is only written.
"""

import base64

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

WEIGHTS = "generator"  # the name of the weights among a model's artifacts
DEFAULTS = {"n": 1, "seed": 0, "z_scale": 1.0}
MOST = 1024  # images in one answer


class Generator(PythonModel):
    """Answers with n images of the seeds from `seed` on, as base64 of PNG files; its input means nothing."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network of the weights' header, in eval mode on the CPU."""
        from pathlib import Path

        from ganpipe.models.generator import load_generator

        self.generator = load_generator(Path(context.artifacts[WEIGHTS]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types
        """Return a dict of seed and png for each image; null is as good as no value.

        Raises:
            MlflowException: a value makes no sense; one sentence, which the server answers with status 400.
        """
        from ganpipe.common.errors import UserError
        from ganpipe.models.generator import check_request, images_of, png_bytes, z_of_seeds

        given = {name: value for name, value in (params or {}).items() if value is not None}
        n, seed, z_scale = (DEFAULTS | given).values()
        try:
            check_request(n, seed, z_scale, MOST)
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        images = images_of(self.generator.network, z_of_seeds(self.generator.spec.params, seed, n, z_scale))
        pngs = [base64.b64encode(png_bytes(image)).decode() for image in images]
        return [{"seed": seed + i, "png": text} for i, text in enumerate(pngs)]


set_model(Generator())
