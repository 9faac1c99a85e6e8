"""Numbers and tables as a person reads them."""

from __future__ import annotations

from typing import Any


def format_number(value: Any) -> str:
    """A metric in about four significant digits, whole numbers whole; `None` and text as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if abs(value) < 1e15 and value == int(value):
        return str(int(value))
    return f"{value:.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """A duration: `0.4 s`, `31 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_table(rows: list[tuple[str, ...]], indent: str = "") -> str:
    """Left-aligned columns, two spaces apart; the first row is no different from the others."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )
