"""What a trained generator is, as model.json and the header of a weights file say it."""

import json

from ganpipe.errors import UserError
from ganpipe.params import Model


def parse(text: str, place: object) -> tuple[Model, int, int]:
    """Read a generator's section of the params, its resolution in pixels a side and its channels.

    Args:
        text: JSON as in model.json.
        place: where it stands, for errors.

    Raises:
        UserError: it describes no generator.
    """
    try:
        described = json.loads(text)
        model = Model(**{key: described[key] for key in Model.model_fields})
        return model, int(described["resolution"]), int(described["channels"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: no readable description ({error}); run the train stage") from None
