"""What MkDocs does beside mkdocs.yml: results and notebooks become pages, formulas become MathML, doctests become code.

A page's links are those of the repository, where `results/` lies beside `docs/`; in the site it lies below.
Formulas are turned into MathML while the site is built, so that a browser needs no script and no network for them.
"""

import json
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_COMMANDS = re.compile(r"(?:^    contextcrf .*\n?)+", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


class ExampleSections(griffe.Extension):
    """Read the `Example:` of a docstring like Griffe's own `Examples:`, whose doctests are rendered as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section, and make its commands a block of code."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _COMMANDS.sub(_shell_block, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `results/`, and a page for every notebook."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.is_file():
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        content = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Adapt the links between `docs/` and `results/` to the site, in which `results/` lies below `docs/`."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri.startswith("results/"):
        return markdown.replace(f"]({up}docs/", f"]({up}")
    return markdown.replace(f"]({up}../results/", f"]({up}results/")


def on_page_content(html: str, **_: Any) -> str:
    """Turn what arithmatex has marked into MathML."""
    return _FORMULA.sub(_mathml, html)


def notebook_page(path: Path) -> str:
    """The cells of a notebook as Markdown, below a link to the notebook itself."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    # The title stays first.
    parts.insert(1, f"[This page as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def _shell_block(found: re.Match[str]) -> str:
    # Without a block, the commands of an example would be one paragraph.
    return f"    ```sh\n{found[0].rstrip()}\n    ```\n"


def _mathml(found: re.Match[str]) -> str:
    # Python-Markdown has escaped what HTML reserves.
    formula = found[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return convert(formula, display="inline" if found[1] == "span" else "block")
