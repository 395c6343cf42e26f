"""Tables of text that are written as Markdown, LaTeX and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

# The characters that are special in LaTeX. tabulate escapes cells in the same way, but it does not write captions.
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "^": r"\^{}",
        "~": r"\textasciitilde{}",
        "\\": r"\textbackslash{}",
        "<": r"\ensuremath{<}",
        ">": r"\ensuremath{>}",
    }
)


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first column contains names, and the other columns contain numbers.

    Special characters in cells are escaped: "|" in Markdown, and characters such as "%" and "_" in LaTeX.

    Args:
        header: the names of the columns.
        rows: the cells of each row. Each row has one cell for each column.
        caption: a sentence about the table. "" omits the caption.

    Example:
        >>> from contextcrf.utils.tables import Table
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
        """Return the caption followed by a Markdown table."""
        header, *rows = ([cell.replace("|", r"\|") for cell in row] for row in (self.header, *self.rows))
        text = f"{self._format(header, rows, 'pipe')}\n"
        return f"{self.caption}\n\n{text}" if self.caption else text

    def to_latex(self) -> str:
        """Return a LaTeX table in the style of booktabs."""
        caption = self.caption.translate(_LATEX)
        cells = self._format(self.header, self.rows, "latex_booktabs")
        return f"\\begin{{table}}\n\\caption{{{caption}}}\n{cells}\n\\end{{table}}\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the caption and the rows as values that JSON supports. Each row maps column names to cells."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"caption": self.caption, "rows": rows}

    @staticmethod
    def _format(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
        align = ["left", *["right"] * (len(header) - 1)]
        return tabulate(rows, header, style, disable_numparse=True, colalign=align)
