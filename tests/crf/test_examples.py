"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from contextcrf import crf

MODULES = [info.name for info in pkgutil.iter_modules(crf.__path__, "contextcrf.crf.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


@pytest.mark.parametrize("name", crf.__all__)
def test_a_public_name_has_an_example(name):
    value = getattr(crf, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert "Example:\n" in inspect.getdoc(value)
