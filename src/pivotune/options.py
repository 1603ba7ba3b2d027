"""What users write as the value of an option, on the command line or in a YAML file, read by the option's type.

The type decides, not the look of a value: `no` is the language Norwegian where names are expected and false where true
or false is, 1e-5 is a number, 010 is ten where a number is expected and a folder's name where text is. Lists may be
written as [zh, vi], as zh,vi, and on the command line as zh vi.
"""

from __future__ import annotations

import codecs
import difflib
import enum
import math
import os
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from pivotune.errors import PivotuneError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NOTHING = ("", "~", "null", "none")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def names_in(value: str | Iterable[str], separator: str = ",") -> list[str]:
    """The names in a list as users write it: "zh,vi", "zh, vi", "[zh, vi]", or a list already.

    A separator inside brackets separates nothing: layers.[0-9]{1,2} is one pattern.
    """
    if not isinstance(value, str):
        return list(value)
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    names = (re.sub(r"""^(["'])(.*)\1$""", r"\2", part.strip()) for part in parts)
    return [name for name in names if name]


def from_words(words: Sequence[str], kind: Any) -> Node:
    """The value that these words of a command line make up: several are a list, where the option takes one."""
    joined = " ".join(words)
    if joined.startswith(("[", "{")) and not os.path.exists(joined):
        try:
            node = _compose(joined)
        except yaml.YAMLError:
            return _scalar(joined)
        _check_nodes("command line", node, ())
        return node
    if len(words) == 1 or not takes_list(kind):
        return _scalar(joined)
    # zh vi, and what is left of "zh, vi" where the shell has split it
    items = [item for word in words for item in ([word] if os.path.exists(word) else names_in(word))]
    return SequenceNode("tag:yaml.org,2002:seq", [_scalar(item) for item in items])


def read_value(node: Node, kind: Any, where: str) -> Any:
    """The value of an option.

    Args:
        node: of a YAML document, or from `from_words`.
        kind: the option's type hint.
        where: names the option in the message, with the file and line if there is one.

    Raises:
        PivotuneError: the value is not of that type.
    """
    try:
        return _read(node, kind)
    except ValueError:
        written = node.value if isinstance(node, ScalarNode) else _plain(node)
        shown = "nothing" if written == "" else repr(written)
        raise PivotuneError(f"{where}: got {shown}; give {in_words(kind)}.") from None


def takes_list(kind: Any) -> bool:
    return any(get_origin(one) is list or one is list for one in _alternatives(kind))


def takes_switch(kind: Any) -> bool:
    """Whether the option may stand on the command line without a value, for true."""
    return bool in _alternatives(kind)


def is_switch(word: str) -> bool:
    return word.lower() in _TRUE + _FALSE + _NOTHING


def takes_mapping(kind: Any) -> bool:
    return any(get_origin(one) is dict or one is dict for one in _alternatives(kind))


def kind_inside(kind: Any) -> Any:
    """The type of the values of a mapping."""
    return next((get_args(one)[1] for one in _alternatives(kind) if get_origin(one) is dict), Any)


def in_words(kind: Any) -> str:
    """What an option of this type takes, for a message."""
    words = dict.fromkeys(word for one in _alternatives(kind) if (word := _word(one)))
    return " or ".join(words)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        values = [repr(value) if isinstance(value, str) else str(value).lower() for value in get_args(kind)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(repr(one.value) for one in kind)}"
    if kind is list or get_origin(kind) is list:
        return "a list, such as a,b"
    if kind is dict or get_origin(kind) is dict:
        return "names with values, such as {name: value}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "a value"}.get(kind, "")


def similar(path: str | Path) -> str:
    """The end of a sentence about a path that does not exist, with one beside it whose name is close."""
    path = Path(path)
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        missing = next((one for one in reversed(path.parents) if not os.path.exists(one)), None)
        return "." if missing is None else f"; there is no {missing}."
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.with_name(near[0])}?" if near else "."


# From a node to a value --------------------------------------------------------------------------------------------


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(part for one in get_args(kind) for part in _alternatives(one))
    return (kind,)


# The alternatives of a type in the order in which a value is tried on them: text, which anything is, comes last.
_ORDER: tuple[Callable[[Any], bool], ...] = (
    lambda kind: get_origin(kind) is Literal,
    lambda kind: kind is type(None),
    lambda kind: kind in (bool, int, float),
    lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum),
    takes_list,
    takes_mapping,
    lambda kind: True,
)


def _read(node: Node, kind: Any) -> Any:
    kinds = _alternatives(kind)
    if str in kinds and _is_quoted(node):
        return node.value
    for one in sorted(kinds, key=lambda one: next(place for place, fits in enumerate(_ORDER) if fits(one))):
        try:
            return _read_one(node, one, several=str in kinds)
        except ValueError:
            continue
    raise ValueError


def _read_one(node: Node, kind: Any, several: bool) -> Any:
    """The value as this one type; a single name is a list only where it cannot be `several` other things."""
    if kind is Any:
        return _plain(node)
    if takes_mapping(kind):
        if not isinstance(node, MappingNode):
            raise ValueError
        _, value_kind = get_args(kind) or (str, Any)
        if any(":" in key and _is_nothing(value) for key, value in _items(node)):  # {name:value}
            raise ValueError
        return {key: _read(value, value_kind) for key, value in _items(node)}
    if takes_list(kind):
        (item_kind,) = get_args(kind) or (Any,)
        if isinstance(node, SequenceNode):
            return [_read(item, item_kind) for item in node.value]
        if not isinstance(node, ScalarNode) or _is_nothing(node):
            raise ValueError
        names = [node.value] if os.path.exists(node.value) else names_in(node.value)
        if several and len(names) < 2 and not node.value.endswith(","):
            raise ValueError
        return [_read(_scalar(name), item_kind) for name in names]
    if not isinstance(node, ScalarNode):
        raise ValueError
    return _read_scalar(node, kind)


def _read_scalar(node: ScalarNode, kind: Any) -> Any:
    text = node.value.strip()
    if get_origin(kind) is Literal:
        for value in get_args(kind):
            if text.lower() == str(value).lower():
                return value
    elif kind is type(None) and _is_nothing(node):
        return None
    elif kind is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    elif kind is int and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    elif kind is int and (number := float(text)).is_integer() and abs(number) < 2**53:  # 1e3
        return int(number)
    elif kind is float and math.isfinite(number := float(text)):
        return number
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(text).value
    elif kind is str and not _is_nothing(node):
        return node.value
    raise ValueError


def _is_nothing(node: Node) -> bool:
    return isinstance(node, ScalarNode) and not _is_quoted(node) and node.value.strip().lower() in _NOTHING


def _is_quoted(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is not None


def _plain(node: Node) -> Any:
    """A value of no stated type."""
    if isinstance(node, MappingNode):
        return {key: _plain(value) for key, value in _items(node)}
    if isinstance(node, SequenceNode):
        return [_plain(item) for item in node.value]
    if _is_quoted(node):
        return node.value
    for kind in (type(None), int, float):
        try:
            return _read_scalar(node, kind)
        except ValueError:
            continue
    text = node.value.lower()
    return text in _TRUE if text in _TRUE + _FALSE else node.value


def _items(node: MappingNode) -> Iterator[tuple[str, Node]]:
    """Names and values of a mapping, `<<` resolved."""
    try:
        yaml.SafeLoader("").flatten_mapping(node)
    except yaml.MarkedYAMLError as error:
        raise PivotuneError(f"line {node.start_mark.line + 1}: << takes a mapping: {error.problem}.") from error
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise PivotuneError(f"line {key.start_mark.line + 1}: an option's name is one word.")
        yield key.value, value


def _scalar(text: str) -> ScalarNode:
    return ScalarNode("tag:yaml.org,2002:str", text)


def _compose(text: str) -> Node:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return _scalar("") if node is None else node


# A YAML file -------------------------------------------------------------------------------------------------------


def presets() -> dict[str, str]:
    """The settings of papers by name: YAML files that ship with the package."""
    return {path.stem: str(path) for path in sorted(Path(__file__).with_name("presets").glob("*.yaml"))}


def read_file(
    path: str | Path, is_group: Callable[[str], bool], switches: Collection[str] = ()
) -> dict[str, tuple[Node, str]]:
    """The options of a YAML file by their dotted names, each with its value and its place (file:line).

    Args:
        path: in UTF-8, or in UTF-16 with a byte order mark.
        is_group: whether this name is one of a group of options.
        switches: groups that are options themselves: true where the file has them, unless it says false.

    Raises:
        PivotuneError: the file cannot be read, is no YAML, or sets an option twice.
    """
    root = _parsed(path)
    if _is_nothing(root):
        raise PivotuneError(f"{path}: is empty. Write options as name: value.")
    if not isinstance(root, MappingNode):
        kind = "list" if isinstance(root, SequenceNode) else "single value"
        raise PivotuneError(f"{path}: holds a {kind}, but options have names. Write name: value.")
    _check_nodes(path, root, ())
    found: dict[str, tuple[Node, str]] = {}

    def walk(node: MappingNode, prefix: str) -> None:
        for key, value in _items(node):
            name = f"{prefix}{key}"
            where = f"{path}:{value.start_mark.line + 1}"
            if name in found:
                raise PivotuneError(f"{where}: {name} is set a second time. Keep one of the two.")
            says = isinstance(value, ScalarNode) and value.value.strip().lower() in _TRUE + _FALSE
            if not is_group(name) or (name in switches and says):
                found[name] = value, where
            elif isinstance(value, MappingNode) or _is_nothing(value):
                if name in switches:
                    found[name] = _scalar("true"), where
                if isinstance(value, MappingNode):
                    walk(value, f"{name}.")
            else:
                raise PivotuneError(f"{where}: {name} is a group of options, but its value is {_plain(value)!r}.")

    walk(root, "")
    return found


def _parsed(path: str | Path) -> Node:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise PivotuneError(f"{path}: no such file{similar(path)}") from None
    except OSError as error:
        raise PivotuneError(f"{path}: cannot be read: {error.strerror}.") from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return _compose(content.decode(encoding))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PivotuneError(f"{path}:{line}: is not text in UTF-8. Save the file as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = 1 + (error.problem_mark or error.context_mark or yaml.Mark("", 0, 0, 0, None, None)).line
        if "'\\t'" in (error.problem or ""):
            raise PivotuneError(f"{path}:{line}: is indented by a tab. YAML takes spaces only.") from error
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise PivotuneError(f"{path}:{line}: is not valid YAML: {problem}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PivotuneError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error


def _check_nodes(path: str | Path, node: Node, above: tuple[Node, ...]) -> None:
    """Refuse names that occur twice in one mapping, of which YAML would keep the last, and values that hold
    themselves."""
    if any(node is one for one in above):
        raise PivotuneError(f"{path}:{node.start_mark.line + 1}: holds itself (an anchor inside its own value).")
    if isinstance(node, ScalarNode) and "\0" in node.value:
        raise PivotuneError(f"{path}:{node.start_mark.line + 1}: holds a NUL, which no name and no path may hold.")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_nodes(path, item, (*above, node))
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise PivotuneError(f"{path}:{line}: an option's name is one word.")
            if key.value in lines and key.value != "<<":
                raise PivotuneError(
                    f"{path}:{line}: {key.value} is set a second time (first in line {lines[key.value]}). Keep one of "
                    "the two."
                )
            lines[key.value] = line
            _check_nodes(path, value, (*above, node))
