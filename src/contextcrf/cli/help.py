"""The texts of `contextcrf --help` and of `contextcrf COMMAND --help`."""

import re
import textwrap
from argparse import OPTIONAL, SUPPRESS, Action
from argparse import HelpFormatter as HelpFormatterBase
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, Literal, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from contextcrf.cli.words import alternatives, type_in_words, value_in_words

PRINT_CONFIG_HELP = (
    "Print the settings in the form of a YAML file and exit. With =skip_default, print only the settings that differ "
    "from their defaults."
)
HELP_HELP = "Show this help and exit."
# The help of jsonargparse for options such as --training, and ours.
_GROUP_FILE = "Path to a configuration file."
GROUP_FILE_HELP = "YAML file with the settings of this group."
OUTRO = "`contextcrf COMMAND --help` describes a command and its options and gives examples."


def summary(documentation: str | None) -> str:
    """Return the first sentence of a docstring."""
    return docstring_parser.parse(documentation or "").short_description or ""


def description(documentation: str | None) -> str:
    """Return the text of a docstring before its sections."""
    found = docstring_parser.parse(documentation or "")
    parts = (found.short_description, found.long_description)
    return "\n\n".join(part for part in parts if part)


def examples(documentation: str | None) -> str:
    """Return the section `Example:` of a docstring under a heading, or an empty text."""
    found = docstring_parser.parse(documentation or "").examples
    lines = [line for example in found for line in (example.description or "").splitlines()]
    return "\n".join(["examples:", *(f"  {line.strip()}" for line in lines)]) if lines else ""


class HelpFormatter(DefaultHelpFormatter):
    """A formatter that shows options with hyphens, types in plain words, and values as in a YAML file."""

    def format_help(self) -> str:
        """Return the help text, with the names of options as they are typed."""
        return re.sub(r"--[\w.]+", lambda found: found[0].replace("_", "-"), super().format_help())

    def add_argument(self, action: Action) -> None:
        """Add an option, unless it is one that jsonargparse adds for the help of a class."""
        if not any(option.endswith(".help") for option in action.option_strings):
            super().add_argument(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap each paragraph to the width of the terminal, and keep the lines of the examples."""
        blocks = text.split("\n\n")
        return "\n\n".join(
            block if block.startswith("examples:") else "\n".join(self._split_lines(block, width)) for block in blocks
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap a text, but not at the hyphens of options and files."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _format_action_invocation(self, action: Action) -> str:
        """Show an option of a list once. jsonargparse accepts --scales+ too, which appends to the list."""
        return re.sub(r", (--[\w.]+)\+.*", "", super()._format_action_invocation(action))

    def _get_help_string(self, action: Action) -> str:
        if action.dest == "print_config":
            return PRINT_CONFIG_HELP
        if action.dest == "help":
            return HELP_HELP
        text = re.sub(r"\bNone\b", "null", action.help or "")
        if text == _GROUP_FILE:
            return GROUP_FILE_HELP
        notes = self._notes(action)
        return f"{text} ({', '.join(notes)})" if notes else text

    def _notes(self, action: Action) -> list[str]:
        """The remarks after the help of an option: its type, and its default or that it is required."""
        kind: Any = getattr(action, "_typehint", None) or action.type
        # Flags and --config have no type: their texts are complete.
        if kind is None or action.nargs == 0:
            return []
        # The choices of a Literal, and those of true and false, are shown after the name of the option.
        notes = [] if kind in (str, bool) or get_origin(kind) is Literal else [type_in_words(kind)]
        default = action.default.as_dict() if isinstance(action.default, Namespace) else action.default
        if action.required:
            notes.append("required")
        elif default != SUPPRESS and (action.option_strings or action.nargs == OPTIONAL):
            notes.append(f"default: {_shown(default)}")
        return notes


class MainParser(ArgumentParser):
    """The parser of the whole command line, whose help lists the commands in groups."""

    command_groups: Mapping[str, Iterable[tuple[str, str | None]]] = {}

    def format_help(self, formatter: HelpFormatterBase | None = None) -> str:
        """Return the help text: the groups with the first sentence of each command."""
        width = max(40, get_terminal_size().columns - 2)
        options = [("-h, --help", HELP_HELP), ("--version", "Show the version and exit.")]
        parts = ["usage: contextcrf COMMAND ...", textwrap.fill(self.description or "", width)]
        for title, rows in [*self.command_groups.items(), ("Options", options)]:
            parts.append("\n".join([f"{title}:", *(_row(name, text or "", width) for name, text in rows)]))
        return "\n\n".join([*parts, textwrap.fill(OUTRO, width)]) + "\n"


def _row(name: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=f"  {name:18}", subsequent_indent=" " * 20, break_on_hyphens=False)


def _shown(default: Any) -> str:
    """A default as it is typed; of a mapping to objects, such as boxes, the keys."""
    if isinstance(default, dict) and any(not isinstance(value, str | float | int | None) for value in default.values()):
        return alternatives(list(default), "and")
    return str(default) if isinstance(default, str | Path) else value_in_words(default)
