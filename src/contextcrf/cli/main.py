"""The command line. `contextcrf COMMAND --help` tells what each takes; every option may stand in a YAML file."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace

from contextcrf.cli.commands import data, measuring, predicting, sharing, training
from contextcrf.cli.errors import complaint, in_plain_words

# Each command with the arguments that stand without a name in front.
COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "init": (data.init, ("data",)),
    "fit": (training.fit, ()),
    "fit-heads": (training.fit_heads, ("model",)),
    "folds": (data.folds, ("data",)),
    "voc": (data.voc, ("root",)),
    "voc-submission": (predicting.voc_submission, ("model", "root")),
    "assemble": (training.assemble, ()),
    "average": (training.average, ("models",)),
    "tune": (training.tune, ("model",)),
    "evaluate": (measuring.evaluate, ("model",)),
    "reproduce": (measuring.reproduce, ("study",)),
    "compare": (measuring.compare, ("first", "second")),
    "predict": (predicting.predict, ("model", "images")),
    "explain": (predicting.explain, ("model", "image")),
    "publish": (sharing.publish, ("model",)),
    "export": (sharing.export, ("model",)),
    "refine": (predicting.refine, ("maps",)),
    "demo": (predicting.demo, ("model",)),
    "tour": (predicting.tour, ()),
    "doctor": (data.doctor, ()),
}


# Given again after Ctrl-C, they go on where they were.
GO_ON = ("fit", "fit-heads", "reproduce")


class Parser(ArgumentParser):
    """Options are written out in full; an error is told without the dozens of lines of all options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)

    def print_usage(self, file: Any = None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """As the library's, with what an unknown option may have been meant to be."""
        if unknown := re.search(r"option '([\w.]+)'|arguments?: --([\w.]+)", message):
            word = unknown[1] or unknown[2]
            if near := get_close_matches(word, _options(self), n=1):
                message += f". Did you mean {near[0]}?"
        if (required := "arguments are required: ") in message:
            before, _, keys = message.partition(required)
            message = before + required + ", ".join(_as_written(key) for key in keys.split(", "))
        super().error(in_plain_words(message), ex)


def _as_written(key: str) -> str:
    """A key of the parser, "fit.data" or "evaluate.model", as the command line has it."""
    command, _, name = key.partition(".")
    return name.upper() if command in COMMANDS and name in COMMANDS[command][1] else f"--{name}"


def _options(parser: ArgumentParser) -> set[str]:
    """The names of all options of a parser and of its commands."""
    known = {action.dest for action in parser._actions}
    commands = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return known.union(*(_options(command) for choices in commands for command in choices.values()))


def build_parser() -> ArgumentParser:
    """The parser of the whole command line, made from the signatures and docstrings of the commands."""
    parser = Parser(prog="contextcrf", description="Semantic segmentation with deep structured models.")
    parser.add_argument("--version", action="version", version=f"contextcrf {version('contextcrf')}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, (function, positional) in COMMANDS.items():
        documentation = docstring_parser.parse(function.__doc__ or "")
        parameters = inspect.signature(function).parameters
        help_of = {parameter.arg_name: parameter.description for parameter in documentation.params}
        command = Parser(description=documentation.short_description)
        command.add_argument("--config", action="config", help="YAML file with any of the options below")
        for argument in positional:
            kind = function.__annotations__[argument]
            if get_origin(kind) is list:
                command.add_argument(argument, type=get_args(kind)[0], nargs="+", help=help_of[argument])
            elif parameters[argument].default is not inspect.Parameter.empty:
                default = parameters[argument].default
                command.add_argument(argument, type=kind, nargs="?", default=default, help=help_of[argument])
            else:
                command.add_argument(argument, type=kind, help=help_of[argument])
        command.add_function_arguments(function, skip=set(positional), as_group=False)
        commands.add_subcommand(name, command, help=documentation.short_description)
    return parser


def _check_yaml(file: TextIO) -> None:
    """Whether it can be read at all; the parser's own error does not name the file."""
    try:
        yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error


def read_command(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of a command and the arguments of its function, as `COMMANDS` has it."""
    parser = build_parser()
    for option, following in pairwise([*arguments, ""]):
        name, _, value = option.partition("=")
        if name == "--config" and (path := value or following):
            with Path(path).open() as file:
                _check_yaml(file)
    options = parser.parse_args(list(arguments))
    for name, parameter in inspect.signature(COMMANDS[options.command][0]).parameters.items():
        if is_dataclass(parameter.annotation) and not isinstance(value := options[options.command][name], Namespace):
            raise ValueError(f"{name} {value!r}: expected settings by their names, as in {name}: {{NAME: VALUE}}")
    values = parser.instantiate(options)[options.command].as_dict()
    values.pop("config")
    return options.command, values


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `contextcrf`. An error of the user's is one line; CONTEXTCRF_TRACEBACK=1 shows where it arose."""
    name = ""
    try:
        name, values = read_command(sys.argv[1:] if arguments is None else arguments)
        COMMANDS[name][0](**values)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        said = complaint(error, name)
        if said is None or os.environ.get("CONTEXTCRF_TRACEBACK"):
            raise
        print(f"contextcrf: error: {said}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("contextcrf: stopped" + ("; the same command goes on" if name in GO_ON else ""), file=sys.stderr)
        raise SystemExit(130) from error
