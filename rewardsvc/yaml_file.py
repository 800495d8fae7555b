"""YAML as the service and the trainers read it: safe, without silent surprises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rewardsvc.errors import ConfigError

_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_DEFAULT_KEY = "tag:yaml.org,2002:value"
"""What YAML 1.1 takes a key `=` for; it means the text here."""


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: If it cannot be read or is not YAML; names the file and the place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: If it is not one, or has a key twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


class _Loader(yaml.SafeLoader):
    """A safe loader with three changes: a key given twice is an error, where plain YAML silently
    keeps the last; 1e-5 is a number, where YAML 1.1 wants 1.0e-5 and gives a text; and merges
    (`<<`) go by the keys, where PyYAML 6.0.4 goes by whether two texts are one object, so that a
    mapping's own key may lose against one that it has merged.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merges (`<<`) are spread out: those may well give a key that is given anew.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Spreads out merges: what is given wins, then what is merged first.

        Source: https://yaml.org/type/merge.html
        """
        pairs: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        own = []
        for key, value in node.value:
            if key.tag == _MERGE:
                for source in self._merged(node, value):
                    self.flatten_mapping(source)
                    for pair in source.value:
                        pairs.setdefault(_identity(pair[0]), pair)
            else:
                if key.tag == _DEFAULT_KEY:
                    key.tag = _TEXT
                own.append((key, value))
        pairs |= {_identity(key): (key, value) for key, value in own}
        node.value = list(pairs.values())

    def _merged(self, node: yaml.MappingNode, value: yaml.Node) -> list[yaml.MappingNode]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping",
                    node.start_mark,
                    "expected a mapping or a list of mappings to merge, found "
                    f"a {getattr(source, 'id', 'node')}",
                    source.start_mark,
                )
        return list(sources)


def _identity(key: yaml.Node) -> object:
    """Equal for scalars that say the same; anything else is no key twice."""
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


_Loader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
