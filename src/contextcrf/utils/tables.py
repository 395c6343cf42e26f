"""Tables of text, written as Markdown, LaTeX and JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column holds names, the others numbers.

    Args:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
        caption: a sentence about the table; "" for none.

    Example:
        >>> print(Table(["system", "mIoU"], [["unary", "66.5"]]).to_markdown())
        | system   |   mIoU |
        |:---------|-------:|
        | unary    |   66.5 |
        <BLANKLINE>
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def to_markdown(self) -> str:
        """A Markdown table, below its caption."""
        return f"{self.caption}\n\n{self._format('pipe')}\n" if self.caption else f"{self._format('pipe')}\n"

    def to_latex(self) -> str:
        """A LaTeX table in the style of booktabs."""
        caption = re.sub(r"([&%_#])", r"\\\1", self.caption)
        return f"\\begin{{table}}\n\\caption{{{caption}}}\n{self._format('latex_booktabs')}\n\\end{{table}}\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"caption": self.caption, "rows": rows}

    def _format(self, style: str) -> str:
        align = ["left", *["right"] * (len(self.header) - 1)]
        return tabulate(self.rows, self.header, style, disable_numparse=True, colalign=align)
