"""MLflow, a mirror of the files in stages/."""
