"""YAML that repeats no key: PyYAML keeps the last value of a repeated key without a message."""

from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        yaml.YAMLError: If the text is not YAML, or if a mapping repeats a key. The message names the line.

    Example:
        >>> from contextcrf.utils.yaml_files import parse_yaml
        >>> parse_yaml("name: sky")
        {'name': 'sky'}
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping",
                    node.start_mark,
                    f"found the key {key.value!r} twice. Remove one of the two lines",
                    key.start_mark,
                )
            seen.add(name)
        return super().construct_mapping(node, deep)
