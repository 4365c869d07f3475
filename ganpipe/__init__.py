"""ganpipe: GANs on a limited set of pictures as a DVC pipeline."""

import os

# Idle OpenMP threads that spin eat the cores of what runs beside them. The library (GNU's with most builds of
# torch, else LLVM's or Intel's) reads this as torch loads; a user's own setting wins.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# Asked before anything slow is imported: a parent that has died leaves no trace but another parent.
PARENT = os.getppid()
