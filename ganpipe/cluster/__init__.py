"""Grids on several machines: the cell, which no engine has to know, and thin submitters to Ray and Slurm."""
