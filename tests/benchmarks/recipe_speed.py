"""How many images a recipe's step makes, in a second and in a second of CPU time.

    python tests/benchmarks/recipe_speed.py beyond -S train.precision=bfloat16
    python tests/benchmarks/recipe_speed.py default       # params.yaml as it is, but without classes
    GLIBC_TUNABLES= python tests/benchmarks/recipe_speed.py beyond    # without `keep_freed_memory`

The step is that of `ganpipe train` on drawn pictures, without tables, grids, checkpoints and MLflow, which
train_speed.py --overhead measures. The last line is the largest resident memory.
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import ganpipe  # noqa: E402, F401, I001  (before torch: it tells OpenMP's threads how to wait)
import torch  # noqa: E402
import typer  # noqa: E402
from train_speed import pictures, write_checkout  # noqa: E402

from ganpipe import params  # noqa: E402
from ganpipe.device import keep_freed_memory  # noqa: E402
from ganpipe.experiments.recipes import apply_settings, recipe_settings  # noqa: E402
from ganpipe.train.devices.feed import Feed  # noqa: E402
from ganpipe.train.devices.ranks import Ranks  # noqa: E402
from ganpipe.train.options import TrainOptions  # noqa: E402
from ganpipe.train.plan import Draws, plan_training  # noqa: E402
from ganpipe.train.players import build_players  # noqa: E402
from ganpipe.train.step import generate, settings_of, update_d, update_g  # noqa: E402

WARM_UP = 3


def main(
    recipe: Annotated[str, typer.Argument(help='A recipe of params.yaml, or "default".')],
    changes: Annotated[list[str] | None, typer.Option("-S", help="key=value, as of `ganpipe run`.")] = None,
    rounds: Annotated[int, typer.Option()] = 3,
    seconds: Annotated[float, typer.Option(help="Of a round.")] = 4.0,
) -> None:
    """Print the rate of each round, their median, and the memory."""
    keep_freed_memory()  # as every command that computes
    values, given = params.load(ROOT / "params.yaml"), changes or []
    settings = given if recipe == "default" else recipe_settings(values, recipe, given)
    values = apply_settings(values, ["model.conditional=false", *settings], recipe)
    device, ranks = torch.device("cpu"), Ranks()
    with tempfile.TemporaryDirectory() as name:
        images = pictures(values.preprocess.resolution, values.preprocess.channels)
        write_checkout(Path(name), images)
        plan = plan_training(values.model, values.train, Path(name))
        step_settings = settings_of(plan, ranks, device)
        players = build_players(plan, 0, TrainOptions(graph=False), ranks)
        draws, feed = Draws(plan, 0, slice(None)), Feed(images, device, "host")
        batches, count = draws.batches(0), 0

        def step() -> None:
            nonlocal count
            count += 1
            draw = next(batches)
            real, z = feed(*draw), draws.z(count, draw[0])
            step_settings.draw(draws.seed, count)
            fake = generate(players.G, z, step_settings)
            update_d(players, real, z, fake, step_settings)
            update_g(players, z, fake, step_settings)

        for _ in range(WARM_UP):
            step()
        rates = []
        for _ in range(rounds):
            before, began, used = count, time.perf_counter(), time.process_time()
            while time.perf_counter() - began < seconds:
                step()
            made = (count - before) * plan.batch_size
            rates.append((made / (time.perf_counter() - began), made / (time.process_time() - used)))
            print("{:,.1f} images/s, {:,.1f} in a second of CPU time".format(*rates[-1]))
    wall, cpu = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"median: {wall:,.1f} images/s, {cpu:,.1f} in a second of CPU time, {torch.get_num_threads()} threads"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    typer.run(main)
