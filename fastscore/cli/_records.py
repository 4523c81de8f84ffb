"""A CSV file that a command fills batch by batch, and goes on with when it is called again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastscore._output import check_place, replaced
from fastscore.cli._arguments import UsageError

__all__ = ["Records"]

_MARK = "# fastscore "


class Records:
    """Rows by index, in a CSV file whose first line holds the settings they were made with, as JSON after "#".

    The file is replaced as a whole whenever rows are added: whoever looks, and whenever it stops, finds whole lines.

    Args:
        path: the file, .csv; read if it is there.
        columns: their names, the first "index".
        settings: what the values depend on.

    Attributes:
        rows: index -> the other columns, as text.

    Raises:
        UsageError: the file was not written by this class, or with other settings or columns.
        ValueError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], settings: dict[str, Any]) -> None:
        check_place(path, (".csv",))
        self.path, self.columns, self.settings = path, list(columns), settings
        self.rows: dict[int, list[str]] = {}
        if path.exists():
            self._read()

    def add(self, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Add rows, and write the file."""
        self.rows.update((index, list(values)) for index, values in rows)
        text = io.StringIO()
        text.write(f"{_MARK}{json.dumps(self.settings)}\n")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(self.columns)
        lines.writerows([index, *self.rows[index]] for index in sorted(self.rows))
        with replaced(self.path) as file:
            file.write(text.getvalue().encode())

    def _read(self) -> None:
        with self.path.open(encoding="utf-8", newline="") as file:
            mark, lines = file.readline(), list(csv.reader(file))
        try:
            made = json.loads(mark.removeprefix(_MARK))
        except ValueError:
            made = None
        if not mark.startswith(_MARK) or not isinstance(made, dict) or lines[:1] != [self.columns]:
            raise UsageError(f"{self.path} holds something else than results of this command; give another --out")
        changed = [name for name in {**made, **self.settings} if made.get(name) != self.settings.get(name)]
        if changed:
            then, now = (", ".join(f"{name} {of.get(name)}" for name in changed) for of in (made, self.settings))
            raise UsageError(f"{self.path} was made with {then}, not with {now}; give another --out, or delete it")
        self.rows = {int(index): values for index, *values in lines[1:]}
