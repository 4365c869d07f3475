"""Stage evaluate: images → numbers and pictures."""
