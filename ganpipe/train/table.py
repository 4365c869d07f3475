"""A CSV table that grows by rows and can be truncated to a step, so that a resumed run repeats no row."""

import os
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ganpipe.common.files import whole


class Table(AbstractContextManager["Table"]):
    """A growing CSV file whose first column is the step; created with its header if absent.

    Rows of steps after `step` are removed, as is a row that a kill left half written. The last `recent` rows
    are remembered; None: all.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0, recent: int | None = 1) -> None:
        header = ",".join(columns) + "\n"
        lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
        rows = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
        with whole(path) as temporary:  # a kill meanwhile must not lose the earlier rows
            temporary.write_text(header + "".join(rows))
        self.lines: deque[str] = deque(rows, recent)
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # each row is visible to readers at once

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def recent(self) -> list[list[float]]:
        """The values of the remembered rows, rounded as they are in the file."""
        return [[float(value) for value in line.split(",")] for line in self.lines]

    def add(self, *values: float) -> None:
        """Append a row: integers in full, other numbers with six significant digits."""
        self.lines.append(",".join(str(v) if isinstance(v, int) else f"{v:.6g}" for v in values) + "\n")
        self.file.write(self.lines[-1])

    def sync(self) -> None:
        """Write the rows so far to the disk, so that they outlive a power cut."""
        os.fsync(self.file.fileno())
