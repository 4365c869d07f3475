"""How a training runs, not what it computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """The flags of `ganpipe train`; they are not params, because a change of them must not train again.

    Attributes:
        fresh: delete an interrupted run of the same training and start anew.
        save_memory: recompute activations in the backward pass instead of storing them.
        graph: record a step as a CUDA graph and replay it.
        log_seconds: seconds between reads of the losses from the device.
        checkpoint_seconds: seconds between checkpoints; 0 for one after each step.
        data_memory_gb: most GB (10^9 bytes) of images to keep on a GPU; None: a quarter of its free memory.
    """

    device: str = "cpu"
    fresh: bool = False
    save_memory: bool = False
    graph: bool = False
    log_seconds: float = 2.0
    checkpoint_seconds: float = 30.0
    data_memory_gb: float | None = None
