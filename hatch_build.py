"""Build hook: the README as a package index shows it, with absolute links.

The README's links are relative, as a repository needs them. Once `[project.urls]` of pyproject.toml has a `Source`, the
package's metadata leads each of them to that address. Without one the README is taken as it is.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<target>[^)\s]+)\)")


def absolute(text: str, source: str) -> str:
    """Return a Markdown text whose relative links lead to a repository, in the form that GitHub and GitLab use.

    Args:
        text: the Markdown text.
        source: the address of the repository, such as "https://github.com/owner/name".
    """

    def lead(found: re.Match[str]) -> str:
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}[{found['text']}]({source.rstrip('/')}/{kind}/HEAD/{found['target']})"

    return _LINK.sub(lead, text)


class ReadmeHook(MetadataHookInterface):
    """Fills in the dynamic field `readme`."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README of the package's metadata."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": text if source is None else absolute(text, source),
        }
