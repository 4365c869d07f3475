"""How a training runs, not what it computes."""

from dataclasses import dataclass

from ganpipe.train.resume.copies import Copies


@dataclass(frozen=True)
class TrainOptions:
    """The flags of `ganpipe train`; they are not params, because a change of them must not train again."""

    device: str = "cpu"
    fresh: bool = False  # delete an interrupted run of the same training and start anew
    save_memory: bool = False  # recompute activations in the backward pass instead of storing them
    graph: bool = True  # on one GPU: record a step as a CUDA graph and replay it
    log_seconds: float = 2.0  # between reads of the losses from the device
    checkpoint_seconds: float = 30.0  # between checkpoints; 0 for one after each step
    data_memory_gb: float | None = None  # of images on a GPU, GB of 10^9 bytes; None: 1/4 of its free memory
    copies: Copies | None = None  # from which other machines can resume
