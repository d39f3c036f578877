"""YAML of strangers as plain values, and plain values as YAML."""

from pathlib import Path
from typing import Any

import yaml

from msrn.errors import RecipeError
from msrn.files import read_bounded

MAX_BYTES = 1_000_000
_MAX_DEPTH = 32
_MAX_INT = 2**64
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """Reads neither aliases, which grow without end where values are written out, nor dates, which are text here."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise ValueError(
                f"an anchor or alias, '{event.anchor}' in line {event.start_mark.line + 1}, is not read here"
            )
        if self._depth == _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} values lie within each other in line {event.start_mark.line + 1}")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes a value that stands in two places twice, as `safe_yaml` reads no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_yaml_file(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        OSError: It is not there, no regular file, larger than `MAX_BYTES`, or cannot be read.
        ValueError: It is not UTF-8, or the path is none.
    """
    return read_bounded(path, MAX_BYTES).decode("utf-8")


def safe_yaml(text: str) -> Any:
    """Text, numbers, truth values, null, lists and mappings of YAML of at most `MAX_BYTES` letters.

    Raises:
        RecipeError: It is not YAML, or holds something else, such as an alias. The message is the reason alone; who knows where the
            text comes from says that.

    Example:
        >>> safe_yaml("{size: [8, 8]}")
        {'size': [8, 8]}
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} letters")
        value = yaml.load(text, _Loader)
        _check_plain(value)
    except Exception as error:  # PyYAML's constructors raise nearly anything, from KeyError to RecursionError
        is_said = isinstance(error, yaml.YAMLError) or type(error) is ValueError
        reason = " ".join(str(error).split()) if is_said else f"{type(error).__name__} in one of its values"
        raise RecipeError(reason[:300]) from None
    return value


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `safe_yaml` reads, in letters of any script unless some would not show as they are."""
    for allow_unicode in (True, False):
        text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode)
        if text.replace("\n", "").isprintable():
            break
    return text


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, below in value.items():
            _check_plain(key)
            _check_plain(below)
    elif isinstance(value, list):
        for below in value:
            _check_plain(below)
    elif isinstance(value, str):
        # Names of files may be no UTF-8; other halves of letters cannot be written.
        value.encode("utf-8", "surrogateescape")
    elif isinstance(value, int):
        if abs(value) >= _MAX_INT:
            raise ValueError("a whole number has more than 64 bits")
    elif not isinstance(value, float | None):
        raise ValueError(f"a value is a {type(value).__name__}, not text, a number, a list or a mapping")
