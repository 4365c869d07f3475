"""ganpipe: GANs on a limited set of pictures as a DVC pipeline."""

import os

# Idle OpenMP threads that spin for long eat the cores of what runs beside them; those that never spin wake up
# too late for small layers. The library (GNU's with most builds of torch, else LLVM's or Intel's, which wants
# milliseconds) reads this as torch loads; a user's own setting wins.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ |= {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}

# Asked before anything slow is imported: a parent that has died leaves no trace but another parent.
PARENT = os.getppid()
