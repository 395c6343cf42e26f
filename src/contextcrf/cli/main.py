"""The command line. `contextcrf COMMAND --help` describes each command. A YAML file can set every option."""

import os
import sys
from collections.abc import Sequence

STOPPED = "contextcrf: Stopped."
# Exit statuses of programs that SIGINT (Ctrl-C), SIGPIPE (a closed pipe) and SIGTERM have ended.
INTERRUPTED, CLOSED_PIPE, TERMINATED = 130, 141, 143

try:
    import inspect
    import logging
    import signal
    import threading
    from argparse import ArgumentError
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import contextmanager
    from dataclasses import dataclass, is_dataclass
    from difflib import get_close_matches
    from importlib.metadata import version
    from typing import Any, get_args, get_origin, get_type_hints

    import docstring_parser
    from jsonargparse import ArgumentParser

    from contextcrf.cli.arguments import Arguments
    from contextcrf.cli.commands import data, evaluation, inference, sharing, training
    from contextcrf.cli.errors import describe_error
    from contextcrf.cli.help import HelpFormatter, MainParser, description, examples, summary
    from contextcrf.training.config import ADDED
    from contextcrf.utils.memory import reuse_freed_memory
    from contextcrf.utils.progress import show_progress
except KeyboardInterrupt as error:
    # The imports take seconds, in which a user may press Ctrl-C.
    print(STOPPED, file=sys.stderr)
    raise SystemExit(INTERRUPTED) from error


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        function: the function that runs the command. Its parameters are the options. If its only parameter is a
            dataclass, the fields of the dataclass are the options.
        positional: names of the options that are given without a name.
        resumable: whether the same command continues an interrupted run.
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


GROUPS: dict[str, dict[str, Command]] = {
    "First steps": {
        "quickstart": Command(data.quickstart),
        "doctor": Command(data.doctor),
    },
    "Data sets": {
        "init": Command(data.init, ("data",)),
        "import": Command(data.import_dataset, ("format", "source", "out")),
        "make-folds": Command(data.make_folds, ("data",)),
        "prepare-voc": Command(data.prepare_voc, ("root",)),
    },
    "Training": {
        "fit": Command(training.fit, resumable=True),
        "fit-heads": Command(training.fit_heads, ("model",), resumable=True),
        "tune": Command(training.tune, ("model",)),
        "merge-potentials": Command(training.merge_potentials),
        "average-weights": Command(training.average_weights, ("models",)),
    },
    "Evaluation": {
        "evaluate": Command(evaluation.evaluate, ("model",)),
        "compare": Command(evaluation.compare, ("first", "second")),
        "reproduce": Command(evaluation.reproduce, ("study",), resumable=True),
        "voc-submission": Command(inference.voc_submission, ("model", "root")),
    },
    "Prediction": {
        "predict": Command(inference.predict, ("model", "images")),
        "explain": Command(inference.explain, ("model", "image")),
        "demo": Command(inference.demo, ("model",)),
        "refine": Command(inference.refine, ("maps",)),
        "tune-refine": Command(inference.tune_refine, ("maps",)),
    },
    "Sharing": {
        "publish": Command(sharing.publish, ("model",)),
        "export": Command(sharing.export, ("model",)),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def build_parser() -> ArgumentParser:
    """Build the parser of the whole command line from the signatures and docstrings of the commands."""
    options: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False, "formatter_class": HelpFormatter}
    text = "Semantic segmentation with CNN unary and pairwise CRF potentials, trained piecewise."
    parser = MainParser(prog="contextcrf", description=text, **options)
    parser.command_groups = {
        title: [(name, summary(command.function.__doc__)) for name, command in group.items()]
        for title, group in GROUPS.items()
    }
    parser.add_argument("--version", action="version", version=f"contextcrf {version('contextcrf')}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        documentation = command.function.__doc__
        subparser = ArgumentParser(
            usage=_usage(name, command),
            description=description(documentation),
            epilog=examples(documentation),
            **options,
        )
        _add_options(subparser, command)
        commands.add_subcommand(name, subparser, help=summary(documentation))
    return parser


def _usage(name: str, command: Command) -> str:
    """The form of a command: its positional arguments and the options that it requires."""
    parts = ["contextcrf", name]
    parameters = inspect.signature(command.options).parameters
    for option in command.positional:
        shown = option.upper()
        if get_origin(parameters[option].annotation) is list:
            shown += " ..."
        required = parameters[option].default is inspect.Parameter.empty
        parts.append(shown if required else f"[{shown}]")
    for option, parameter in parameters.items():
        if option not in command.positional and parameter.default is inspect.Parameter.empty:
            parts.append(f"--{option} {option.upper()}")
    return " ".join([*parts, "[options]"])


def _add_options(parser: ArgumentParser, command: Command) -> None:
    parser.add_argument(
        "--config", action="config", help="YAML file with options. Options on the command line override it."
    )
    source = command.options
    documentation = docstring_parser.parse(source.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in documentation.params}
    parameters, kinds = inspect.signature(source).parameters, get_type_hints(source)
    for name in command.positional:
        kind, default = kinds[name], parameters[name].default
        shown: dict[str, Any] = {"help": help_of[name], "metavar": name.upper()}
        if get_origin(kind) is list:
            parser.add_argument(name, type=get_args(kind)[0], nargs="+", **shown)
        elif default is inspect.Parameter.empty:
            parser.add_argument(name, type=kind, **shown)
        else:
            parser.add_argument(name, type=kind, nargs="?", default=default, **shown)
    # Options that are false by default are flags.
    flags = [name for name, parameter in parameters.items() if parameter.default is False]
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=help_of[name])
    skip: set[str | int] = {*command.positional, *flags}
    if isinstance(source, type):
        parser.add_class_arguments(source, skip=skip, as_group=False)
    else:
        parser.add_function_arguments(source, skip=skip, as_group=False)


def option_types(command: Command) -> dict[str, Any]:
    """Return the type of each option of a command by its name, such as "training.epochs" for one in a group."""
    found: dict[str, Any] = {}
    hints = get_type_hints(command.options)
    for name in inspect.signature(command.options).parameters:
        kind = _group_type(hints[name])
        if is_dataclass(kind):
            found |= {f"{name}.{field}": inner for field, inner in get_type_hints(kind).items()}
        if kind is not hints[name] or not is_dataclass(kind):
            found[name] = hints[name]
    return found


def _group_type(kind: Any) -> Any:
    """Return the dataclass of a group of options that may be null, and other types as they are."""
    members = [member for member in get_args(kind) if is_dataclass(member)]
    return members[0] if len(members) == 1 and type(None) in get_args(kind) else kind


def option_names(command: Command) -> set[str]:
    """Return the names of a command's options, such as "training.epochs" for one in a group."""
    return set(option_types(command))


def read_command(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the name of a command and the values of its options.

    Args:
        arguments: the arguments of the command line, without the name of the program.

    Raises:
        ValueError: there is no such command or option, an argument is missing, or a value is not accepted.
    """
    # Options are typed with hyphens; the names of parameters have underscores.
    arguments = [_with_underscores(argument) for argument in arguments] or ["--help"]
    name = arguments[0]
    if name not in COMMANDS:
        _check_without_command(name)
        build_parser().parse_args(arguments)
    command = COMMANDS[name]
    given = Arguments(name, option_types(command), command.positional, arguments[1:])
    parser = build_parser()
    try:
        options = parser.parse_args([name, *given.ordered])
        values = parser.instantiate(options)[name].as_dict()
    except ArgumentError as error:
        raise ValueError(given.describe(error.message)) from error
    except ValueError as error:
        if (text := given.describe(str(error))) == str(error):
            raise
        raise ValueError(text) from error
    values.pop("config")
    if name == "fit":
        _check_init(values["init"], given)
    return name, values


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _check_without_command(argument: str) -> None:
    """Raise a ValueError unless the first argument asks for the help or the version."""
    if argument in ("-h", "--help", "--version"):
        return
    more = "`contextcrf --help` lists the commands."
    if argument.startswith("-"):
        shown = argument.replace("_", "-")
        raise ValueError(f"The first argument is {shown}, but the name of a command is expected. {more}")
    near = get_close_matches(argument, COMMANDS, n=1)
    raise ValueError(f"There is no command {argument!r}. {f'Did you mean {near[0]}? ' if near else ''}{more}")


def _check_init(init: str | None, given: Arguments) -> None:
    """Raise a ValueError if options of the model are given that the model of --init overrides."""
    added = [f"model.{name}" for name in ADDED]
    ignored = [name for name in given.given if name.partition(".")[0] == "model" and name not in added]
    if init is not None and ignored:
        path = given.given[ignored[0]].path
        option = f"--{ignored[0].replace('_', '-')}" if path is None else f"{ignored[0]} in {path}"
        raise ValueError(
            f"{option} cannot be combined with --init {init}, because the configuration of that model is used. Remove "
            "the options of the group model, or remove --init."
        )


class _PrintHandler(logging.Handler):
    """A handler that prints the library's messages to the standard output, where progress bars make room for them."""

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


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """Turn SIGTERM within the block into a KeyboardInterrupt, so that files and locks are left as after Ctrl-C.

    Yields:
        A list to which the signal is appended.
    """
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    An error of the user is printed in one line, and the exit status is 2. With CONTEXTCRF_TRACEBACK=1, the traceback is
    shown too. Ctrl-C ends a command with the exit status 130, and SIGTERM with 143.

    Args:
        arguments: the arguments without the name of the program; None takes those of the process.
    """
    reuse_freed_memory()
    try:
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError as error:
        # The reader has closed the pipe, as in `contextcrf --help | head -1`. Python writes the rest of its buffer when
        # it ends, which would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from error


def _run(arguments: Sequence[str]) -> None:
    name = ""
    with _sigterm() as received:
        try:
            name, values = read_command(arguments)
            with _messages(), show_progress():
                COMMANDS[name].run(values)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            text = describe_error(error, name)
            if text is None or os.environ.get("CONTEXTCRF_TRACEBACK"):
                raise
            print(f"contextcrf: error: {text}", file=sys.stderr)
            raise SystemExit(2) from error
        except KeyboardInterrupt as error:
            hint = " Run the same command again to continue." if name and COMMANDS[name].resumable else ""
            print(f"{STOPPED}{hint}", file=sys.stderr)
            raise SystemExit(TERMINATED if received else INTERRUPTED) from error
