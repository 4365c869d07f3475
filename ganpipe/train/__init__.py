"""Stage train: packed images → a generator."""
