"""The tables that evaluations write (`table.json`): reading them, and printing them as text."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slotzoo.errors import DataError


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: `rows` have the key "name" and a value (number, text or None) per column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    better: Mapping[str, str] = dataclasses.field(default_factory=dict)  # column -> "higher" | "lower"
    curves: tuple[Mapping[str, Any], ...] = ()  # title, x_label, y_label, x, series: {name: values}

    def best(self, column: str) -> float | None:
        """The best number of a column that says which direction is better."""
        numbers = [row.get(column) for row in self.rows]
        numbers = [x for x in numbers if isinstance(x, int | float)]
        if len(numbers) < 2 or column not in self.better:
            return None
        return max(numbers) if self.better[column] == "higher" else min(numbers)


def read_tables(source: Path | Mapping[str, Any]) -> list[Table]:
    """The tables of a `table.json` file, or of its content: one table, or several under the key "tables".

    Raises DataError for what is not such a file.
    """
    where = f"{source}" if isinstance(source, Path) else "the table"
    if isinstance(source, Path):
        try:
            content = json.loads(source.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{where} cannot be read as a table: {error}") from error
    else:
        content = source
    many = content.get("tables", [content]) if isinstance(content, Mapping) else None
    if not isinstance(many, list):
        raise DataError(f'{where} is neither a table nor {{"tables": [...]}}')
    return [_table(entry, where) for entry in many]


def text_tables(source: Path | Mapping[str, Any]) -> str:
    """The tables of a `table.json` file, or of its content, as aligned text for a terminal."""
    return "\n\n".join(_text(table) for table in read_tables(source))


def format_value(value: Any) -> str:
    """A cell: numbers with four significant digits, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.4g}"


def _table(entry: Any, where: str) -> Table:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} holds a {type(entry).__name__} where a table was expected")
    rows = entry.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{where} has rows that are not objects with a name and values")
    columns = entry.get("columns") or list(dict.fromkeys(k for row in rows for k in row if k != "name"))
    better = entry.get("better") or {}
    return Table(
        str(entry.get("title", "Evaluation")),
        tuple(str(column) for column in columns if column != "name"),
        tuple(rows),
        tuple(str(note) for note in entry.get("notes") or ()),
        better if isinstance(better, Mapping) else {},
        tuple(curve for curve in entry.get("curves") or () if isinstance(curve, Mapping)),
    )


def _text(table: Table) -> str:
    lines = [["", *table.columns]]
    for row in table.rows:
        lines.append([str(row.get("name", "")), *(format_value(row.get(column)) for column in table.columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [table.title]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        text.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*text, *(f"  {note}" for note in table.notes)])
