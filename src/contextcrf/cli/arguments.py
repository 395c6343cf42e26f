"""The options that a user gives, on the command line and in files, and the sentences for mistakes in them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from contextcrf.cli.words import alternatives, is_list, is_mapping, type_in_words, value_in_words
from contextcrf.utils.yaml_files import parse_yaml

# Options of the parser itself.
_PARSER_OPTIONS = {"config", "print_config", "help"}
_SUGGESTIONS = 3
# The sentence of our own check in an error that jsonargparse has put together.
_REASON = re.compile(r"^\s*- (?!Expected|Does not|Problem)(.*)", re.MULTILINE)


@dataclass(frozen=True)
class Given:
    """An option that a user has set.

    Args:
        value: a text on the command line, or the value in a file.
        path: the file; None for the command line.
    """

    value: Any
    path: Path | None = None


class Arguments:
    """The arguments of a command, checked before they are parsed.

    Args:
        command: name of the command.
        kinds: type of each option by its name, such as "training.epochs".
        positional: names of the options that are given without a name.
        arguments: arguments after the command, with underscores in the names of options.

    Attributes:
        given: the options that are set, by name.
        ordered: the arguments with all options `--config` first, so that the others override the files.

    Raises:
        ValueError: an option does not exist, or a file does not contain options.
        OSError: a file cannot be read.
    """

    def __init__(
        self, command: str, kinds: Mapping[str, Any], positional: Sequence[str], arguments: Sequence[str]
    ) -> None:
        self.command, self.kinds, self.positional = command, kinds, positional
        self.groups = {option.partition(".")[0] for option in kinds if "." in option}
        self.given: dict[str, Given] = {}
        files: list[str] = []
        others: list[str] = []
        typed: dict[str, Given] = {}
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            option, equals, value = argument.removeprefix("--").partition("=")
            if not argument.startswith("--"):
                others.append(argument)
            elif option == "config":
                if not equals and (not rest or rest[0].startswith("--")):
                    raise ValueError("The option --config needs a value: the path of a YAML file.")
                path = Path(value if equals else rest.pop(0))
                content = _read(path)
                # An empty file sets no option, but jsonargparse does not accept it.
                if content is not None:
                    files.append(f"--config={path}")
                    for name, setting in self._options(content, path):
                        self._check(name, path)
                        self.given[name] = Given(setting, path)
            else:
                self._check(option)
                typed[option] = Given(value if equals or not rest else rest[0])
                others.append(argument)
        self.given |= typed
        self.ordered = [*files, *others]

    def _options(self, values: Any, path: Path, group: str = "") -> Iterator[tuple[str, Any]]:
        """The names and values of the options in a file, also of those in groups."""
        if not isinstance(values, dict):
            place = f"{path} has {value_in_words(values)} under {group}" if group else f"{path} contains {values!r}"
            raise ValueError(f"{place}, but options with their values are expected, as in NAME: VALUE.")
        for key, value in values.items():
            if not group and key in self.groups and value is not None:
                yield from self._options(value, path, key)
            else:
                yield (f"{group}.{key}" if group else str(key)), value

    def _check(self, option: str, path: Path | None = None) -> None:
        """Raise a ValueError if the command has no such option."""
        # The keys of an option that is itself a mapping are free, as in model.relations.above.top.
        outer = {".".join(option.split(".")[:depth]) for depth in (1, 2, 3)} - (self.groups if "." in option else set())
        if not outer & (self.kinds.keys() | _PARSER_OPTIONS) and option not in self.groups:
            raise ValueError(self.unknown(option, path))

    def unknown(self, option: str, path: Path | None = None) -> str:
        """Return the sentences for an option that the command does not have."""
        # Groups that may be null repeat the options of another group, so they are suggested only for their own.
        group = option.partition(".")[0]
        repeated = (self.groups & self.kinds.keys()) - {group}
        known = [name for name in self.kinds if name not in self.positional and name.partition(".")[0] not in repeated]
        if group in self.groups:
            known = [name for name in known if name.startswith(f"{group}.")] or known
        leaf = option.rpartition(".")[2]
        same = [name for name in known if leaf == name.rpartition(".")[2]]
        near = same or get_close_matches(option, [*known, *self.groups], n=1)
        if not near:
            leaves = get_close_matches(leaf, [name.rpartition(".")[2] for name in known], n=1)
            near = [name for name in known if name.rpartition(".")[2] in leaves]
        hint = f" Did you mean {alternatives([_typed(name, path) for name in near[:_SUGGESTIONS]])}?" if near else ""
        if path is not None:
            return f"{path} contains {option}, but {self.command} has no such option.{hint}"
        return f"{self.command} has no option {_typed(option)}.{hint}"

    def describe(self, message: str) -> str:
        """Return the sentences for an error of the parser.

        Args:
            message: the message of jsonargparse.
        """
        # The parser puts the command's name before those of its options.
        message = message.replace(f"{self.command}.", "")
        more = f"`contextcrf {self.command} --help` describes the arguments."
        if found := re.match(r"the following arguments are required: (.*)", message):
            names = [self._name(name) for name in found[1].split(", ")]
            plural = "arguments" if len(names) > 1 else "argument"
            verb = "are" if len(names) > 1 else "is"
            return f"The {plural} {alternatives(names, 'and')} {verb} missing. {more}"
        if found := re.match(r"argument (--[\w.]+).*: expected (?:at least )?one argument", message):
            return f"The option {_typed(found[1])} needs a value. {more}"
        if found := re.match(r"argument (--[\w.]+): ignored explicit argument (.*)", message):
            flag = _typed(found[1])
            return f"The option {flag} takes no value, but {found[2]} was given. Write {flag} alone."
        if found := re.match(r"unrecognized arguments: (.*)", message):
            return f"{self.command} does not take the argument {found[1]}. {more}"
        if found := re.search(r"does not accept option '([\w.]+)'", message):
            return self.unknown(found[1])
        if "Union subtypes" in message and "TrainingConfig" in message:
            return self._describe_group(message)
        key = re.match(r'Parser key "([\w.]+)"', message)
        if key is not None and (key[1] in self.kinds or key[1] in self.groups):
            return self._describe_value(key[1], message)
        if "Union subtypes" in message and "RangeBox" in message and "model.relations" in self.kinds:
            return self._describe_value("model.relations", message)
        return message

    def _describe_group(self, message: str) -> str:
        """Return the sentences for a mistake in a group of options that may be null."""
        keys = re.findall(r'Parser key "([\w.]+)"', message)
        if len(keys) > 1 and (option := ".".join(keys[:2])) in self.kinds:
            return self._describe_value(option, message)
        if keys:
            return self._describe_value(keys[0], message)
        found = _REASON.search(message)
        return found[1] if found else message

    def _describe_value(self, option: str, message: str) -> str:
        """Return the sentences for a value that an option does not accept."""
        if option in self.groups and option not in self.kinds:
            expected, advice = "the path of a YAML file with the settings of this group", ""
        else:
            kind = self.kinds[option]
            expected, advice = type_in_words(kind), _advice(kind)
        # Keys of a mapping may be set one by one, as in --model.relations.above.top.
        setting = next((name for name in reversed(self.given) if f"{name}.".startswith(f"{option}.")), None)
        if setting is None:
            return f"{self._name(option)} has a value that is not valid, but {expected} is expected.{advice}"
        given = self.given[setting]
        if option in self.positional and isinstance(given.value, dict) and given.path is not None:
            return (
                f"{given.path} has a group of options under {setting}, which is an argument of {self.command}. The "
                f"file is for another command, such as fit. Use a config for {self.command}."
            )
        place = _typed(setting) if given.path is None else f"{given.path}: {setting}"
        reason = _box_problem(message)
        if reason:
            return f"{place} is {value_in_words(given.value)}. {reason}"
        return f"{place} is {value_in_words(given.value)}, but {expected} is expected.{advice}"

    def _name(self, name: str) -> str:
        """The name of an argument in messages."""
        return name.upper() if name in self.positional else _typed(name)


def _read(path: Path) -> Any:
    """The content of a YAML file; None if it is empty."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a YAML file: {error}") from error


def _typed(option: str, path: Path | None = None) -> str:
    """The name of an option as it is typed on the command line, or as it stands in a file."""
    return option if path is not None else f"--{option.removeprefix('--').replace('_', '-')}"


def _advice(kind: Any) -> str:
    """A sentence on the form of lists and mappings."""
    if is_list(kind):
        items = "a, b" if "names" in type_in_words(kind) else "1, 2"
        return f" Write a list in quotes and brackets, as in '[{items}]'."
    return " Write a mapping in quotes and braces, as in '{\"above\": 1}'." if is_mapping(kind) else ""


def _box_problem(message: str) -> str:
    """The sentence for the first mistake in the boxes of relations, if the message is about one."""
    if found := re.search(r"Option '(\w+)' is not accepted", message):
        return f"A box has no setting {found[1]!r}: it has top, bottom, left, right, hole and grid."
    if found := re.search(r"- Problem with .*\n\s+the following arguments are required: (.*)", message):
        return f"A box also needs {found[1]}: the extents from the node, as fractions of min(height, width)."
    if found := re.search(r"RangeBox':\n\s+Parser key \"(\w+)\"", message):
        return f"A number is expected for {found[1]} of a box."
    found = _REASON.search(message)
    return f"In a box, {found[1]}" if found and "RangeBox" in message else ""
