"""A CSV table that grows by rows and can be cut back to a step, so that a resumed run repeats no row."""

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ganpipe.common import files


class Table:
    """A growing CSV file whose first column is the step.

    Args:
        path: the file; made with its header if absent.
        columns: names of all columns, the first "step".
        step: rows of later steps are cut off, as is a row that a kill left half written.
        recent: how many of the last rows to remember; None: all.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0, recent: int | None = 1) -> None:
        header = ",".join(columns) + "\n"
        lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
        rows = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
        with files.whole(path) as temporary:  # a kill meanwhile must not cost the rows before
            temporary.write_text(header + "".join(rows))
        self.lines: deque[str] = deque(rows, recent)
        self.file = open(path, "a", encoding="utf-8")

    @property
    def recent(self) -> list[list[float]]:
        """The values of the remembered rows, rounded as they stand in the file."""
        return [[float(value) for value in line.split(",")] for line in self.lines]

    def add(self, *values: float) -> None:
        """Append a row; whole numbers as they are, others with six significant digits."""
        self.lines.append(",".join(str(v) if isinstance(v, int) else f"{v:.6g}" for v in values) + "\n")
        self.file.write(self.lines[-1])

    def flush(self) -> None:
        """Show the rows so far to readers of the file."""
        self.file.flush()

    def sync(self) -> None:
        """Put the rows so far on the disk, to outlive a power cut."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
