"""Values as users write them, in YAML files and on the command line: read by the option's type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pivotune.errors import PivotuneError
from pivotune.options import from_words, names_in, read_file, read_value, similar

NAMES = list[str] | None
STYLE = Literal["auto", "plain", "none"]
KINDS = [str, int, float, bool, bool | None, int | Literal["auto"] | None, STYLE, STYLE | None, str | list[str], NAMES]
KINDS += [dict[str, Any] | str | None, dict[str, str | None] | None, bool | str | None, str | None, list[int]]


def said(kind: Any, *words: str) -> Any:
    """What the command line makes of these words."""
    return read_value(from_words(words, kind), kind, "option")


def written(kind: Any, text: str) -> Any:
    """What a YAML file with `option: TEXT` means."""
    node = yaml.compose(f"option: {text}", Loader=yaml.SafeLoader)
    return read_value(node.value[0][1], kind, "option")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "no", "no"),
        (str, "010", "010"),
        (str, "2024-01-01", "2024-01-01"),
        (str, "1e-5", "1e-5"),
        (str, "yes", "yes"),
        (str | None, "null", None),
        (str | None, "~", None),
        (str | None, "None", None),
        (bool | str | None, "off", False),
        (bool | str | None, "True", True),
        (bool | str | None, "runs/zh", "runs/zh"),
        (bool, "yes", True),
        (bool, "1", True),
        (bool, "off", False),
        (bool, "FALSE", False),
        (float, "1e-5", 1e-5),
        (float, "2e5", 2e5),
        (float, ".5", 0.5),
        (float, "'3'", 3.0),
        (int, "010", 10),
        (int, "1e3", 1000),
        (int, "-1", -1),
        (int | None, "none", None),
        (int | Literal["auto"] | None, "auto", "auto"),
        (int | Literal["auto"] | None, "7", 7),
        (STYLE | None, "none", "none"),
        (STYLE | None, "null", None),
        (STYLE, "Plain", "plain"),
        (NAMES, "no", ["no"]),
        (NAMES, "no, on", ["no", "on"]),
        (NAMES, "[no, on, 010]", ["no", "on", "010"]),
        (NAMES, "null", None),
        (str | list[str], "all-linear", "all-linear"),
        (str | list[str], "q_proj,v_proj", ["q_proj", "v_proj"]),
        (str | list[str], r"layers\.[0-9]{1,2}\.(q|v)", r"layers\.[0-9]{1,2}\.(q|v)"),
        (
            dict[str, Any] | str | None,
            "{a: 1e-5, b: off, c: {d: no way}}",
            {"a": 1e-5, "b": False, "c": {"d": "no way"}},
        ),
        (dict[str, str | None] | None, "{text: no, other: null}", {"text": "no", "other": None}),
    ],
)
def test_the_type_decides(kind: Any, text: str, value: Any) -> None:
    """In a file and on the command line alike."""
    assert written(kind, text) == value
    if not text.startswith("'"):
        assert said(kind, text) == value


def test_quotes_make_text() -> None:
    assert written(bool | str | None, "'no'") == "no"
    assert written(str | None, "'null'") == "null"
    assert written(int, "'7'") == 7


@pytest.mark.parametrize(
    "words",
    [
        ("zh,vi",),
        ("zh", "vi"),
        ("zh,", "vi"),
        ("zh", ",vi"),
        ("[zh,vi]",),
        ("[zh,", "vi]"),
        ("['zh',", '"vi"]'),
        ('"zh","vi"',),
    ],
    ids=" ".join,
)
def test_lists_on_the_command_line(words: tuple[str, ...]) -> None:
    for kind in (NAMES, str | list[str], str | list[str] | None):
        assert said(kind, *words) == ["zh", "vi"]


def test_a_name_that_is_given_twice_in_one_mapping() -> None:
    with pytest.raises(PivotuneError, match="command line:1: a is set a second time"):
        from_words(["{a: 1, a: 2}"], dict)


def test_a_file_whose_name_has_a_comma(tmp_path: Path) -> None:
    file = tmp_path / "a, b.jsonl"
    file.touch()
    assert said(str | list[str], str(file)) == str(file)
    assert said(str | list[str], str(file), "c.jsonl") == [str(file), "c.jsonl"]


@given(st.lists(st.text(st.characters(categories=["L", "N"], include_characters="_-./ "), min_size=1).map(str.strip)))
def test_names_survive_their_list(names: list[str]) -> None:
    names = [name for name in names if name]
    assert names_in(",".join(names)) == names_in(", ".join(names)) == names_in(f"[{', '.join(names)}]") == names
    assert names_in("a, b; (c; d) ;", ";") == ["a, b", "(c; d)"]


@given(
    st.sampled_from(KINDS),
    st.text(max_size=12) | st.sampled_from(["[", "{a", "[1, {}]", "nan", "inf", "1e999", "*a", "&a"]),
)
def test_any_text_is_read_or_refused(kind: Any, text: str) -> None:
    """Never another exception; never words of the type system."""
    try:
        said(kind, text)
    except PivotuneError as error:
        message = str(error).replace(repr(text), "")
        assert message.startswith("option: got ")
        assert not any(word in message for word in ("class", "typing", "NoneType", "Union", "list[", "Literal"))


# A file --------------------------------------------------------------------------------------------------------------


def options_of(path: Path, content: str | bytes) -> dict[str, Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_file(path, lambda name: name in ("data", "training"))
    return {name: read_value(node, Any, where) for name, (node, where) in found.items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_encodings_and_line_ends(encoding: str, ending: str, tmp_path: Path) -> None:
    text = ending.join(["output: 跑", "training:", "  seed: 3", ""])
    content = {
        "utf-16-le-bom": b"\xff\xfe" + text.encode("utf-16-le"),
        "utf-16-be-bom": b"\xfe\xff" + text.encode("utf-16-be"),
    }.get(encoding) or text.encode(encoding.removesuffix("-bom"))
    assert options_of(tmp_path / "a.yaml", content) == {"output": "跑", "training.seed": 3}


def test_anchors_dots_and_empty_groups(tmp_path: Path) -> None:
    content = "data: &d {train: a}\ntraining.seed: 1\n"
    assert options_of(tmp_path / "a.yaml", content) == {"data.train": "a", "training.seed": 1}
    content = "data: {train: &t a, eval: *t}\ntraining:\n"
    assert options_of(tmp_path / "a.yaml", content) == {"data.train": "a", "data.eval": "a"}
    merged = "data: {train: {<<: &x {a: 1, b: 2}, a: 3}}\n"
    assert options_of(tmp_path / "a.yaml", merged) == {"data.train": {"a": 3, "b": 2}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("output: a\nmethod: sft\noutput: b\n", "a.yaml:3: output is set a second time (first in line 1)"),
        ("data: {train: a, train: b}", "a.yaml:1: train is set a second time"),
        ("data: {train: a}\ndata.train: b", "a.yaml:2: data.train is set a second time"),
        ("data:\n\ttrain: a\n", "a.yaml:2: is indented by a tab. YAML takes spaces only."),
        ("", "a.yaml: is empty"),
        ("# only a comment\n", "a.yaml: is empty"),
        ("null", "a.yaml: is empty"),
        ("- output: a", "a.yaml: holds a list, but options have names"),
        ("output", "a.yaml: holds a single value, but options have names"),
        ("data: 3", "a.yaml:1: data is a group of options, but its value is 3"),
        ("data: [train]", "data is a group of options, but its value is ['train']"),
        ("output: *x", "a.yaml:1: is not valid YAML: found undefined alias"),
        ("output: &x {a: *x}", "a.yaml:1: holds itself"),
        ("? [a, b]\n: c", "a.yaml:1: an option's name is one word"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("output: [", "is not valid YAML"),
        ('output: "a\\0b"', "a.yaml:1: holds a NUL"),
        ("output: é".encode("latin-1"), "a.yaml:1: is not text in UTF-8"),
        (b"output: \x00", "is not valid YAML"),
    ],
)  # fmt: skip
def test_files_that_are_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(PivotuneError) as caught:
        options_of(tmp_path / "a.yaml", content)
    assert message in str(caught.value)


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        options_of(tmp_path_factory.getbasetemp() / "any.yaml", content)
    except PivotuneError as error:
        assert "any.yaml" in str(error)


def test_a_missing_file_and_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    with pytest.raises(PivotuneError, match=r"rnu\.yaml: no such file; did you mean .*/run\.yaml\?"):
        read_file(tmp_path / "rnu.yaml", lambda name: False)
    with pytest.raises(PivotuneError, match="cannot be read: Is a directory"):
        read_file(tmp_path, lambda name: False)
    assert similar(tmp_path / "nothing" / "like") == f"; there is no {tmp_path / 'nothing'}."
    assert similar(tmp_path / "zzz") == "."
    assert similar(tmp_path / ("a" * 300) / "b") == f"; there is no {tmp_path / ('a' * 300)}."
