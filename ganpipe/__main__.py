"""`python -m ganpipe`: the code of the current folder, which a queued experiment needs; same as `ganpipe`."""

from ganpipe.cli import main

main()
