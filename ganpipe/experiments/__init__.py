"""Recipes, grids of DVC experiments, and their comparison."""
