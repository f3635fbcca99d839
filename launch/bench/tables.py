"""Where benches work, and how they show what they measured: a table in the terminal, and a CSV file."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Rows = Sequence[Mapping[str, str]]


@contextmanager
def scratch(work: Path | None) -> Iterator[Path]:
    """A new directory in `work`, which need not be there, or among the temporary ones; gone afterwards."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="vitline-bench-") as place:
        yield Path(place)


def print_rows(rows: Rows) -> None:
    """Aligned to the right, under the names of the first row."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [dict(zip(widths, widths, strict=True)), *rows]:
        print("  ".join(row[key].rjust(width) for key, width in widths.items()))


def write_rows(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
