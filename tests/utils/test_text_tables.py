"""Tables in Markdown, LaTeX and as plain values."""

import re

from contextcrf.utils.tables import Table

TABLE = Table(
    ["system", "IoU of a_class [%]"],
    [["unary & pairwise_1", "66.50"], ["$full$", "7.00"]],
    caption="Mean IoU in % on val_1 & test #2",
)


def test_markdown():
    assert TABLE.to_markdown() == (
        "Mean IoU in % on val_1 & test #2\n"
        "\n"
        "| system             |   IoU of a_class [%] |\n"
        "|:-------------------|---------------------:|\n"
        "| unary & pairwise_1 |                66.50 |\n"
        "| $full$             |                 7.00 |\n"
    )
    assert Table(["a"], [["1"]]).to_markdown().startswith("| a")


def test_latex_escapes_special_characters():
    text = TABLE.to_latex()
    assert r"\caption{Mean IoU in \% on val\_1 \& test \#2}" in text
    rows = [line.split("&") for line in text.replace(r"\&", "and").splitlines() if line.endswith(r"\\")]
    assert [[cell.removesuffix(r"\\").strip() for cell in row] for row in rows] == [
        ["system", r"IoU of a\_class [\%]"],
        [r"unary and pairwise\_1", "66.50"],
        [r"\$full\$", "7.00"],
    ]
    assert text.startswith("\\begin{table}\n")
    assert text.endswith("\\end{table}\n")
    assert r"\begin{tabular}{lr}" in text


def test_markdown_escapes_the_bars_of_cells():
    lines = Table(["a|b", "c"], [["x || y", "1"]]).to_markdown().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [cells[0], cells[2]] == [[r"a\|b", "c"], [r"x \|\| y", "1"]]


def test_latex_escapes_captions_like_cells():
    special = "a$b^c~d{e}f<g>h\\i"
    escaped = r"a\$b\^{}c\textasciitilde{}d\{e\}f\ensuremath{<}g\ensuremath{>}h\textbackslash{}i"
    text = Table([special, "x"], [[special, "1"]], caption=special).to_latex()
    assert f"\\caption{{{escaped}}}\n" in text
    assert text.count(escaped) == 3
    assert special not in text


def test_plain_values():
    assert TABLE.to_dict() == {
        "caption": "Mean IoU in % on val_1 & test #2",
        "rows": [
            {"system": "unary & pairwise_1", "IoU of a_class [%]": "66.50"},
            {"system": "$full$", "IoU of a_class [%]": "7.00"},
        ],
    }
