"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import shlex

import pytest

import contextcrf
from contextcrf.cli.main import COMMANDS, read_command
from test_docs import found, public_names

MODULES = sorted(info.name for info in pkgutil.walk_packages(contextcrf.__path__, "contextcrf."))
COMMAND_NAMES = {
    f"{command.function.__module__}.{command.function.__name__}": name for name, command in COMMANDS.items()
}


def example(name):
    """The section "Example:" of a docstring, without its indentation."""
    thing = found(name)
    text = inspect.getdoc(getattr(thing, "__func__", thing)) or ""
    _, heading, section = text.partition("Example:\n")
    assert heading, f"{name} has no example"
    return inspect.cleandoc(section)


def needs_example(name):
    """Whether a public name is a function or a class of this library, and not an error."""
    thing = found(name)
    thing = getattr(thing, "__func__", thing)
    if not getattr(thing, "__module__", "").startswith("contextcrf"):
        return False  # push_to_hub is inherited from huggingface_hub
    return inspect.isroutine(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "contextcrf.__main__"])
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("name", sorted(filter(needs_example, public_names() - set(COMMAND_NAMES))))
def test_a_public_name_has_an_example(name):
    assert ">>> " in example(name)


@pytest.mark.parametrize("function", sorted(COMMAND_NAMES))
def test_the_examples_of_a_command_are_its_own(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in example(function).splitlines() if line.startswith("contextcrf ")]
    assert lines
    for line in lines:
        assert read_command(shlex.split(line)[1:])[0] == COMMAND_NAMES[function]
