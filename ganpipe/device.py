"""The device that networks run on."""

from ganpipe.common.errors import UserError


def resolve(name: str) -> str:
    """Return a usable torch device; "auto" is the GPU if there is one, else the CPU.

    Raises UserError: torch does not know the name, or this machine does not have the device.
    """
    import torch  # here, so that the command line starts without it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); use --device auto or cpu") from None
    return name
