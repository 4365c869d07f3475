"""Stage sample: a trained generator → images."""
