"""What a user asks of an engine that runs a grid's cells."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The options of `ganpipe grid`; they change where cells run, not what they compute."""

    run: bool = False
    jobs: int = 1  # experiments at a time in DVC's queue
    on: str | None = None  # ray, ray=HOST:PORT, slurm, slurm=PARTITION; None: DVC's queue on this machine
    gpus: int | None = None  # a cell; None: one where there are any
    cpus: int = 1  # a cell
    hours: float = 24.0  # after which Slurm interrupts a cell and queues it again
    collect: bool = False  # fetch what has finished
    end: bool = False  # end the cells: with `run` at Ctrl-C, with `collect` now

    @property
    def engine(self) -> str:
        """The name before the equals sign, "ray" or "slurm"."""
        return (self.on or "").partition("=")[0]

    @property
    def where(self) -> str:
        """Ray's address or Slurm's partition; empty if not given."""
        return (self.on or "").partition("=")[2]


def environment_for(gpus: int) -> dict[str, str]:
    """Return the variables that make a training use as many GPUs as its cell has."""
    if gpus == 0:
        return {"CUDA_VISIBLE_DEVICES": ""}  # an engine that assigns none hides none
    return {"GANPIPE_DEVICES": str(gpus)} if gpus > 1 else {}
