"""Types and values of options in plain words, for help texts and errors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from contextcrf.crf import RangeBox

# The name of one value and of several values of a type.
_NOUNS = {
    bool: ("true or false", "values true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "names"),
    Path: ("a path", "paths"),
    NoneType: ("null", "null"),
    RangeBox: ("a box", "boxes"),
}
_LONGEST = 60


def type_in_words(kind: Any, plural: bool = False) -> str:
    """Return the name of a type.

    Args:
        kind: an annotation.
        plural: name several values instead of one.

    Example:
        >>> type_in_words(list[float] | None), type_in_words(Literal["adamw", "sgd"])
        ('a list of numbers or null', 'adamw or sgd')
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return alternatives([str(member) for member in members])
    if origin in (Union, UnionType):
        # Every whole number is a number. Several values are named without null.
        omitted = {int if float in members else None, NoneType if plural else None}
        words = [type_in_words(member, plural) for member in members if member not in omitted]
        return alternatives([word for words_of_one in words for word in words_of_one.split(" or ")])
    if origin is tuple and members[-1] is not Ellipsis:
        return f"{'lists' if plural else 'a list'} of {len(members)} {type_in_words(members[0], plural=True)}"
    if is_list(kind):
        return f"{'lists' if plural else 'a list'} of {type_in_words(members[0], plural=True)}"
    if is_mapping(kind):
        return f"{'mappings' if plural else 'a mapping'} of names to {type_in_words(members[1], plural=True)}"
    if kind in _NOUNS:
        return _NOUNS[kind][plural]
    return "a mapping of settings" if is_dataclass(kind) else "text"


def is_list(kind: Any) -> bool:
    """Whether the values of a type, or of a member of a union, are written as a list."""
    return any(get_origin(member) in (list, tuple, Sequence) for member in _members(kind))


def is_mapping(kind: Any) -> bool:
    """Whether the values of a type, or of a member of a union, are written as a mapping."""
    return any(get_origin(member) in (dict, Mapping) for member in _members(kind))


def value_in_words(value: Any) -> str:
    """Return a value as it is written in a YAML file, shortened to 60 characters.

    Example:
        >>> value_in_words(None), value_in_words((1.0, 0.5)), value_in_words("x")
        ('null', '[1.0, 0.5]', "'x'")
    """
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def alternatives(names: Sequence[str], word: str = "or") -> str:
    """Return an enumeration of names.

    Example:
        >>> alternatives(["a", "b", "c"]), alternatives(["a", "b"], "and")
        ('a, b or c', 'a and b')
    """
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} {word} {last}" if others else last


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
