"""What decides the last bits of a training step besides the code and the params: hardware and libraries."""

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def describe(device: str, graph: bool = False) -> dict[str, str]:
    """Describe what decides the last bits of a step on a torch device, recorded as a CUDA graph or not."""
    # torch has no public way to read oneDNN's flag alone, and mypy knows none of its attributes.
    onednn = getattr(torch.backends.mkldnn, "enabled", True) and torch.backends.mkldnn.is_available()
    environment = {
        "torch": str(torch.__version__),  # a subclass of str, which torch.load refuses
        "the device": torch.device(device).type,
        "the number of ranks": os.environ.get("WORLD_SIZE", "1"),
        "the processor": _processor(),
        "the instruction set": torch.backends.cpu.get_cpu_capability() + " bfloat16" * bool(has_bfloat16()),
        "the thread count": str(torch.get_num_threads()),
        "oneDNN": f"{'on' if onednn else 'off'}{os.environ.get('ONEDNN_MAX_CPU_ISA', '')}",
    }
    if torch.device(device).type == "cuda":
        environment["the GPU"] = torch.cuda.get_device_name(device)
        environment["the step"] = "recorded" if graph else "plain"
        environment["CUDA"] = str(torch.version.cuda)
        environment["cuDNN"] = str(torch.backends.cudnn.version())
    return environment


def has_bfloat16() -> bool | None:
    """Say whether the processor has instructions for bfloat16; None: old versions of torch do not tell."""
    read: Any = getattr(torch.cpu, "get_capabilities", None)
    names = "avx512_bf16", "amx_bf16", "bf16", "sve_bf16"  # the last two are ARM's
    return any(read().get(name, False) for name in names) if read else None


def hardware_of(environment: dict[str, str]) -> str:
    """Name the hardware of an environment: the GPU, or the processor and its threads in use."""
    processor, threads = environment["the processor"], environment["the thread count"]
    name = environment.get("the GPU", f"{processor}, {threads} thread{'s' if threads != '1' else ''}")
    ranks = int(environment["the number of ranks"])
    return f"{ranks} × {name}" if ranks > 1 else name


def differences(saved: dict[str, str], now: dict[str, str]) -> str:
    """List what differs: "the thread count was 2 and is 1; torch was …"; empty for equal environments."""
    names = [name for name in saved | now if saved.get(name) != now.get(name)]
    return "; ".join(f"{name} was {saved.get(name, 'none')} and is {now.get(name, 'none')}" for name in names)


def _processor() -> str:
    """Return the processor's model: oneDNN chooses its blocks by more than the instruction set."""
    model = None
    with suppress(OSError):
        model = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"))
    return model[1].strip() if model else platform.processor() or platform.machine()
