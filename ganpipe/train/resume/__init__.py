"""Resume on another machine: copies of an unfinished training on storage that both see."""
