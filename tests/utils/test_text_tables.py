"""Tables in Markdown, LaTeX and as plain values."""

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


def test_plain_values():
    assert TABLE.to_dict() == {
        "caption": "Mean IoU in % on val_1 & test #2",
        "rows": [
            {"system": "unary & pairwise_1", "IoU of a_class [%]": "66.50"},
            {"system": "$full$", "IoU of a_class [%]": "7.00"},
        ],
    }
