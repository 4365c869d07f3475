"""Stage sample: the generator → images."""
