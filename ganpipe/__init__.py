"""ganpipe: GANs on a limited set of pictures as a DVC pipeline."""

import os

# Idle OpenMP threads that spin eat the cores of what runs beside them. libgomp reads this when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
