"""The command line. `contextcrf COMMAND --help` explains each command; every option may stand in a YAML file."""

import inspect
import logging
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from contextcrf.cli.commands import data, evaluation, inference, sharing, training
from contextcrf.cli.errors import describe_error
from contextcrf.utils.progress import show_progress


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        function: what it runs. Its parameters are the options; or it takes one dataclass, whose fields are.
        positional: the options that are given without a name.
        resumable: the same command goes on where it was stopped.
    """

    function: Callable[..., None]
    positional: tuple[str, ...] = ()
    resumable: bool = False

    @property
    def options(self) -> Callable[..., Any]:
        """The function or dataclass whose parameters are the options."""
        parameters = list(inspect.signature(self.function).parameters.values())
        only = parameters[0].annotation if len(parameters) == 1 else None
        return only if is_dataclass(only) and isinstance(only, type) else self.function

    def run(self, values: Mapping[str, Any]) -> None:
        """Run the command with the values of its options."""
        if self.options is self.function:
            self.function(**values)
        else:
            self.function(self.options(**values))


COMMANDS: dict[str, Command] = {
    "init": Command(data.init, ("data",)),
    "fit": Command(training.fit, resumable=True),
    "fit-heads": Command(training.fit_heads, ("model",), resumable=True),
    "tune": Command(training.tune, ("model",)),
    "evaluate": Command(evaluation.evaluate, ("model",)),
    "compare": Command(evaluation.compare, ("first", "second")),
    "predict": Command(inference.predict, ("model", "images")),
    "explain": Command(inference.explain, ("model", "image")),
    "refine": Command(inference.refine, ("maps",)),
    "demo": Command(inference.demo, ("model",)),
    "reproduce": Command(evaluation.reproduce, ("study",), resumable=True),
    "make-folds": Command(data.make_folds, ("data",)),
    "prepare-voc": Command(data.prepare_voc, ("root",)),
    "voc-submission": Command(inference.voc_submission, ("model", "root")),
    "merge-potentials": Command(training.merge_potentials),
    "average-weights": Command(training.average_weights, ("models",)),
    "publish": Command(sharing.publish, ("model",)),
    "export": Command(sharing.export, ("model",)),
    "quickstart": Command(data.quickstart),
    "doctor": Command(data.doctor),
}


class _HelpFormatter(DefaultHelpFormatter):
    """Shows options with hyphens, as they are typed."""

    def format_help(self) -> str:
        """The help, with the names of options as they are typed."""
        return re.sub(r"--[\w.]+", lambda found: found[0].replace("_", "-"), super().format_help())


def build_parser() -> ArgumentParser:
    """The parser of the whole command line, made from the signatures and docstrings of the commands."""
    options: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False, "formatter_class": _HelpFormatter}
    parser = ArgumentParser(
        prog="contextcrf", description="Semantic segmentation with deep structured models.", **options
    )
    parser.add_argument("--version", action="version", version=f"contextcrf {version('contextcrf')}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = docstring_parser.parse(command.function.__doc__ or "").short_description
        subparser = ArgumentParser(description=summary, **options)
        _add_options(subparser, command)
        commands.add_subcommand(name, subparser, help=summary)
    return parser


def _add_options(parser: ArgumentParser, command: Command) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    source = command.options
    documentation = docstring_parser.parse(source.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in documentation.params}
    parameters = inspect.signature(source).parameters
    for name in command.positional:
        kind, default = parameters[name].annotation, parameters[name].default
        if get_origin(kind) is list:
            parser.add_argument(name, type=get_args(kind)[0], nargs="+", help=help_of[name])
        elif default is inspect.Parameter.empty:
            parser.add_argument(name, type=kind, help=help_of[name])
        else:
            parser.add_argument(name, type=kind, nargs="?", default=default, help=help_of[name])
    # Options that switch something on are flags.
    flags = [name for name, parameter in parameters.items() if parameter.default is False]
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=help_of[name])
    skip: set[str | int] = {*command.positional, *flags}
    if isinstance(source, type):
        parser.add_class_arguments(source, skip=skip, as_group=False)
    else:
        parser.add_function_arguments(source, skip=skip, as_group=False)


def option_names(command: Command) -> set[str]:
    """The names of a command's options; those in a group of settings have its name in front, as "training.epochs"."""
    names = set()
    for name, parameter in inspect.signature(command.options).parameters.items():
        kind = parameter.annotation
        names |= {f"{name}.{field.name}" for field in fields(kind)} if is_dataclass(kind) else {name}
    return names


def read_command(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of a command and the values of its options.

    Raises:
        ValueError: an option that does not exist, or a value that does not fit.
    """
    # Options are typed with hyphens; Python's names have underscores.
    arguments = [_with_underscores(argument) for argument in arguments] or ["--help"]
    name = arguments[0]
    if name in COMMANDS:
        _check_options(name, arguments[1:])
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
        values = parser.instantiate(options)[options.command].as_dict()
    except ArgumentError as error:
        # The parser puts the command's name before those of its options.
        raise ValueError(error.message.replace(f"{name}.", "")) from error
    values.pop("config")
    return options.command, values


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _check_options(name: str, arguments: Sequence[str]) -> None:
    """Raise a ValueError for an option that a command does not have, on the command line or in a file of options."""
    known = option_names(COMMANDS[name])
    groups = {option.partition(".")[0] for option in known if "." in option}
    for argument, following in pairwise([*arguments, ""]):
        if not argument.startswith("--"):
            continue
        option, _, value = argument[2:].partition("=")
        given = [option]
        place = ""
        if option == "config":
            path = Path(value or following)
            given, place = list(_names(_read_options(path), groups, path)), f"{path}: "
        for option in given:
            # The inside of a setting that is itself a mapping is free, as in model.relations.above.top.
            outer = {".".join(option.split(".")[:depth]) for depth in (1, 2, 3)}
            if not outer & (known | {"print_config", "help"}) and option not in groups:
                near = get_close_matches(option, known | groups, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(f"{place}{name} has no option {option}.{hint}")


def _read_options(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error


def _names(values: Any, groups: set[str], path: Path, group: str = "") -> Iterator[str]:
    """The names of the options in a file, those in groups of settings too."""
    if not isinstance(values, dict):
        raise ValueError(
            f"{path}: {group or 'options'} {values!r}: expected settings by their names, as in NAME: VALUE"
        )
    for key, value in values.items():
        if not group and key in groups:
            yield from _names(value, groups, path, key)
        else:
            yield f"{group}.{key}" if group else str(key)


class _PrintHandler(logging.Handler):
    """Prints the library's messages on the standard output, which progress bars know how to share."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", flush=True)


@contextmanager
def _messages() -> Iterator[None]:
    """Print the library's messages within the block."""
    logger, handler = logging.getLogger("contextcrf"), _PrintHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `contextcrf`. A user's error is one line; CONTEXTCRF_TRACEBACK=1 shows where it arose."""
    name = ""
    try:
        name, values = read_command(sys.argv[1:] if arguments is None else arguments)
        with _messages(), show_progress():
            COMMANDS[name].run(values)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        description = describe_error(error, name)
        if description is None or os.environ.get("CONTEXTCRF_TRACEBACK"):
            raise
        print(f"contextcrf: error: {description}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        hint = " Run the same command again to continue." if name and COMMANDS[name].resumable else ""
        print(f"contextcrf: Stopped.{hint}", file=sys.stderr)
        raise SystemExit(130) from error
