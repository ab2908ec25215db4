"""The result of an evaluation: a table with baselines, and the verdict in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from monosemy.metrics.table import MetricRow


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures on held-out text, one column for the dictionary and one for each baseline."""

    columns: list[str]
    rows: list[MetricRow]
    verdict: str
    context: dict[str, Any]
    """What was measured, on what, with which formulas."""

    def value(self, row: str, column: str = "dictionary") -> float:
        """Return one figure.

        Raises:
            KeyError: no such row or column, or no figure there.
        """
        for candidate in self.rows:
            if candidate.name == row:
                cell = candidate.values[self.columns.index(column)]
                if cell is not None:
                    return cell.value
        raise KeyError(f"no figure `{row}` for `{column}`")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [f"{'':28}" + "".join(f"{name:>28}" for name in self.columns)]
        for row in self.rows:
            cells = [
                "" if v is None else f"{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]"
                for v in row.values
            ]
            lines.append(f"{row.name:28}" + "".join(f"{cell:>28}" for cell in cells))
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in ["", *self.columns])
        body = "".join(
            f"<tr><th>{escape(row.name)}</th>"
            + "".join(
                "<td></td>"
                if v is None
                else f"<td title='95%: {v.low:.4g} to {v.high:.4g}'>{v.value:.3f}</td>"
                for v in row.values
            )
            + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{escape(self.verdict)}</p>"
