"""model.json: the description of a training and of the generator that it ends with."""

import json
from typing import Any

from ganpipe.common.files import whole
from ganpipe.train.plan import Plan


def write_description(plan: Plan, ending: dict[str, Any]) -> None:
    """Write model.json into the training's folder; `ending` holds what is known only at its end."""
    averaged = "" if plan.train.ema_halflife_kimg is None else ", averaged"
    description = {
        **plan.model.model_dump(),
        "resolution": plan.resolution,
        "channels": plan.channels,
        "weights": f"{plan.train.keep}{averaged}",
        "train_images": len(plan.rows),
        "epochs": plan.train.epochs,
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "nimg": plan.steps * plan.batch_size,
        "data_digest": plan.data.digest,
        "train": plan.train.model_dump(),
    }
    with whole(plan.folder / "model.json") as temporary:
        temporary.write_text(json.dumps(description | ending, indent=2) + "\n")
