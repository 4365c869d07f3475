"""The memory that glibc keeps or returns, counted in page faults."""

import ctypes
import os
import subprocess
import sys

import pytest
from conftest import ROOT

# The faults of ten arrays of 64 MB, one after the other: 320 if each is made of new pages of 2 MB.
PROGRAM = """
import resource
import numpy as np
from ganpipe.device import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(12):
    np.ones(2**23).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)
@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"GLIBC_TUNABLES": ""}, False)])
def test_freed_memory_is_kept_unless_the_environment_configures_malloc(
    settings: dict[str, str], kept: bool
) -> None:
    """Each training step would wait for the kernel, or a user's own setting would be overruled."""
    names = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)} | settings
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 32 if kept else int(ended.stdout) > 300
