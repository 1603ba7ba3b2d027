"""Files are read row by row; each bad row is raised with its place or counted, none is lost."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pivotune.data import DataError, Report, read_examples, read_prompts
from pivotune.errors import PivotuneError


def row(number: int | None, language: str = "zh", english: bool = True) -> dict[str, Any]:
    result: dict[str, Any] = {"language": language, "instruction": f"问题 a{number}", "output": "答 b"}
    if number is not None:
        result["id"] = number
    if english:
        result["english"] = {"instruction": f"Question {number}", "output": "Answer"}
    return result


def lines(*rows: Any) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_same_rows_from_every_format(name: str, tmp_path: Path, file: Any) -> None:
    rows = [row(1), row(2, english=False), row(3)]
    if name.endswith(".parquet"):
        path = tmp_path / name
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        # Editors on Windows put a byte order mark in front.
        path = file(name, "\ufeff" + (lines(*rows) if ".jsonl" in name else json.dumps(rows)))
    examples, report = read_examples(path)
    assert [example.id for example in examples] == ["1", "2", "3"]
    assert [example.english is not None for example in examples] == [True, False, True]
    assert examples[2].english is not None and examples[2].english.question == "Question 3"
    assert report.rows == {"zh": 3} and report.pairs == {"zh": 2}


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([row(1), row(2)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples, _ = read_examples("hub:owner/name")
    assert examples[1].where == "hub:owner/name:train: row 2"
    read_examples("hub:owner/name:test[:10]")
    read_examples("hub:owner/name/zho:dev")
    read_examples("hub:name")
    assert asked == [
        ("owner/name", None, "train"),
        ("owner/name", None, "test[:10]"),
        ("owner/name", "zho", "dev"),
        ("name", None, "train"),
    ]


def test_hub_configurations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder stands in for a data set of the hub; datasets reads both in the same way."""
    for config in ("aa", "bb"):
        (tmp_path / f"owner/name/{config}").mkdir(parents=True)
        (tmp_path / f"owner/name/{config}/train.jsonl").write_text(lines(row(1)), "utf-8")
    files = [f"- config_name: {config}\n  data_files: {config}/*.jsonl\n" for config in ("aa", "bb")]
    (tmp_path / "owner/name/README.md").write_text(f"---\nconfigs:\n{''.join(files)}---\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    examples, _ = read_examples("hub:owner/name/bb")
    assert examples[0].where == "hub:owner/name/bb:train: row 1"
    for source, words in {
        "hub:owner/name": ["['aa', 'bb']", "Write hub:owner/name/CONFIGURATION:train"],
        "hub:owner/name/cc:dev": ["'cc'", "['aa', 'bb']", "hub:owner/name/CONFIGURATION:dev"],
        "hub:owner/name/aa:dev": ["dev", "['train']"],
    }.items():
        with pytest.raises(PivotuneError) as caught:
            read_examples(source)
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


def test_hub_failure_names_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, split: str) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PivotuneError, match=r"hub:owner/name:dev: .*split='dev'.* no route"):
        read_examples("hub:owner/name:dev")


def test_line_numbers_are_ids_and_empty_lines_are_no_rows(file: Any) -> None:
    path = file("a.jsonl", b"\xef\xbb\xbf" + lines(row(None), "", row(None)).encode())
    examples, report = read_examples(str(path))
    assert [example.id for example in examples] == ["1", "3"]
    assert report.kept == 2 and not report.skipped


def test_ids_of_several_sources_do_not_collide(file: Any) -> None:
    paths = [file("a.jsonl", lines(row(None))), file("b.jsonl", lines(row(None)))]
    examples, _ = read_examples(paths)
    assert [example.id for example in examples] == [f"{path}:1" for path in paths]


def test_translations_may_share_ids(file: Any) -> None:
    examples, _ = read_examples(file("a.jsonl", lines(row(1), row(1, "ja"))))
    assert [example.language for example in examples] == ["zh", "ja"]


BAD_LINES: dict[str, tuple[str | bytes, str, list[str]]] = {
    "cut off": ('{"id": 1, "lang', "malformed line", ["at column", '{"id": 1, "lang', "one JSON object per line"]),
    "not UTF-8": (b'{"id": "\xff"}', "malformed line", ["not UTF-8 at byte 8", "save the file as UTF-8"]),
    "NaN": ('{"id": 5, "language": "zh", "instruction": "x", "output": NaN}', "malformed line", ["NaN is not JSON"]),
    "infinity": ('{"id": -Infinity}', "malformed line", ["-Infinity is not JSON"]),
    "twice": ('{"id": 1, "output": "a", "output": "b"}', "malformed line", ["the field 'output' is there twice"]),
    "bottomless": ("[" * 200_000, "malformed line", ["recursion"]),
    "a number": ("3", "wrong type", ["the row is 3 (int)"]),
    "misspelt": ('{"langauge": "zh"}', "unknown field", ["did you mean 'language'?"]),
    "duplicate id": (json.dumps(row(1)), "duplicate id", ["'id' is '1'", "a.jsonl:1", "'zh'", "its own id"]),
    "not listed": (json.dumps(row(9, "ja")), "wrong language", ["'language' is 'ja'", "expected 'zh'", "'languages'"]),
    "no English": (json.dumps(row(9, english=False)), "missing English", ["'english' is missing", "'zh' row '9'"]),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_an_error_or_a_counted_skip(case: str, file: Any) -> None:
    line, reason, words = BAD_LINES[case]
    line = line.encode() if isinstance(line, str) else line
    path = file("a.jsonl", lines(row(1)).encode() + line + b"\n" + lines(row(2)).encode())
    with pytest.raises(DataError) as caught:
        read_examples(path, require_english=True, languages=["zh"])
    assert str(caught.value).startswith(f"{path}:2: {reason}: ")
    for word in [*words, "Fix: "]:
        assert word in str(caught.value)

    examples, report = read_examples(path, require_english=True, languages=["zh"], on_bad="skip")
    assert [example.id for example in examples] == ["1", "2"]
    assert report.skipped == {reason: 1}
    assert f"skipped, {reason}: 1 ({path}:2)" in str(report)


def test_the_same_file_twice_is_all_duplicates(file: Any) -> None:
    path = file("a.jsonl", lines(row(1)))
    with pytest.raises(DataError, match="duplicate id"):
        read_examples([path, path])


def test_languages_admit_regions_and_english_needs_no_counterpart(file: Any) -> None:
    path = file("a.jsonl", lines(row(1, "zh-TW"), row(2, "en", english=False)))
    examples, _ = read_examples(path, languages=["zh", "en"], require_english=True)
    assert len(examples) == 2
    with pytest.raises(DataError, match="expected 'zh-CN', 'en'"):
        read_examples(path, languages=["zh-CN", "en"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[{},\n{]", ["a.json:2: malformed JSON", "named .jsonl"]),
        ("a.json", '[{"a": 1, "a": 1}]', ["a.json: malformed JSON", "the field 'a' is there twice"]),
        ("a.json", '{"data": [], "version": 1}', ["a.json", "one dict", "'data', 'version'", "jq .data a.json"]),
        ("a.json", '{"0": {}, "1": {}}', ["a.json", "one dict", "a list of objects"]),
        ("a.json", "[NaN]", ["a.json", "NaN is not JSON"]),
        ("a.json", b"\xff", ["a.json", "utf-8", "UTF-8"]),
        ("a.csv", "x", ["a.csv", "'.csv'", ".parquet", "pandas.read_csv('a.csv')"]),
        ("a.TSV", "x", ["a.TSV", "sep='\\t'"]),
        ("a.jsonl.zst", "x", ["'.zst'", "unpack it first"]),
        ("a.txt", "x", ["'.txt'", "holds no answers"]),
        ("a.jsonl", lines(row(1)).encode("utf-16"), ["a.jsonl", "UTF-16", "iconv"]),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), ["a.jsonl", "gzip", "add .gz"]),
        ("a.json", b"PAR1", ["a.json", "is Parquet"]),
        ("a.parquet", "x", ["a.parquet", "as Parquet"]),
        ("a.jsonl", "\n", ["a.jsonl", "no example to use", "0 kept"]),
    ],
)
def test_bad_file(name: str, content: str | bytes, words: list[str], file: Any) -> None:
    with pytest.raises(PivotuneError) as caught:
        read_examples(file(name, content))
    for word in words:
        assert word in str(caught.value)


def test_places_in_json_and_parquet(tmp_path: Path, file: Any) -> None:
    rows = [row(1), row(1)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (file("a.json", json.dumps(rows)), tmp_path / "a.parquet"):
        with pytest.raises(DataError) as caught:
            read_examples(path)
        assert str(caught.value).startswith(f"{path}: row 2: duplicate id")


def test_missing_broken_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"nowhere\.jsonl: no such file; give \.jsonl"):
        read_examples(tmp_path / "nowhere.jsonl")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(lines(row(1)).encode())[:-9])
    with pytest.raises(PivotuneError, match=r"broken\.jsonl\.gz: cannot be read behind line 0: .* cut or damaged"):
        read_examples(tmp_path / "broken.jsonl.gz", on_bad="skip")
    (tmp_path / "plain.jsonl.gz").write_text(lines(row(1)))
    with pytest.raises(PivotuneError, match=r"not compressed with gzip; take \.gz"):
        read_examples(tmp_path / "plain.jsonl.gz")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(PivotuneError, match=r"folder\.jsonl: is a folder; name its files"):
        read_examples(tmp_path / "folder.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(PivotuneError, match=r"pipe\.jsonl: is a pipe"):
        read_examples(tmp_path / "pipe.jsonl")
    with pytest.raises(PivotuneError, match="no source: no example"):
        read_examples([])


def test_unknown_on_bad(file: Any) -> None:
    with pytest.raises(PivotuneError, match="on_bad: got 'ignore'; choose one of 'error', 'skip'"):
        read_examples(file("a.jsonl", lines(row(1))), on_bad="ignore")


def test_report_reads_well() -> None:
    report = Report(truncated=2)
    for paired in (True, True, False, True):
        report.keep("zh", paired)
    report.keep("en", False)
    report.note("language 'zho', read as 'zh'", "a.jsonl:1")
    for number in range(7):
        report.skip(DataError(f"a.jsonl:{number}", "empty answer", "", ""))
    assert report.pair_share("zh") == 0.75 and report.pair_share("xx") == 0.0
    assert str(report).splitlines() == [
        "5 kept, 7 skipped",
        "  zh: 4 rows, 3 with English (75.0%)",
        "  en: 1 rows, 0 with English (0.0%)",
        "  skipped, empty answer: 7 (a.jsonl:0, a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, ...)",
        "  rows with language 'zho', read as 'zh': 1 (a.jsonl:1)",
        "  answers cut at the end: 2 target, 0 English",
    ]


@given(st.lists(st.one_of(st.integers(0, 30).map(row), st.text('{}[]":,a1 ', max_size=8)), min_size=1, max_size=12))
def test_every_line_is_kept_or_counted(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(lines(row(99), *rows), encoding="utf-8")
    _, report = read_examples(path, on_bad="skip")
    blank = sum(isinstance(one, str) and not one.strip() for one in rows)
    assert report.kept + report.skipped.total() + blank == len(rows) + 1


@pytest.mark.parametrize(
    ("row", "question", "language"),
    [
        ({"instruction": "为什么？"}, "为什么？", "und"),
        ({"prompt": "Vì sao?", "language": "vi", "english": {"prompt": "Why?"}}, "Vì sao?", "vi"),
        ({"messages": [{"role": "user", "content": "Why?"}], "language": "en"}, "Why?", "en"),
        ({"instruction": "Why?", "output": "", "id": 7}, "Why?", "und"),
    ],
)
def test_prompts_need_neither_answer_nor_language(tmp_path: Path, row: dict, question: str, language: str) -> None:
    path = tmp_path / "prompts.json"  # JSON lines under the name .json, as in the released benchmark files
    path.write_text("\n".join([json.dumps(row)] * 2), encoding="utf-8")
    for prompt in read_prompts(path):
        assert (prompt.text.question, prompt.language, prompt.text.answer) == (question, language, "")
        assert (prompt.english is not None) == ("english" in row)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"instruction": "a"}\n{"instructoin": "b"}', ["p.jsonl:2", "did you mean 'instruction'"]),
        ('{"instruction": " "}', ["p.jsonl:1", "empty question"]),
        ('{"instruction": "a"}\n{"instruction"', ["p.jsonl:2", "malformed line"]),
        ("", ["p.jsonl", "no prompt"]),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PivotuneError) as error:
        read_prompts(path)
    assert all(word in str(error.value) for word in words), error.value


def forbid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that belongs to somebody else; the tests may run as root, whom nothing is forbidden."""
    opened = Path.open

    def open_other(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_other)


def test_a_file_that_may_not_be_read(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("a.jsonl", lines(row(1)))
    forbid(path, monkeypatch)
    with pytest.raises(PivotuneError, match=r"a\.jsonl: cannot be read: Permission denied"):
        read_examples(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.parquet", "b.parquet"])
@given(data=st.data())
def test_a_damaged_file_is_one_error(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [row(number) for number in range(20)]
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress((lines(*rows) if "jsonl" in name else json.dumps(rows)).encode(), mtime=0))
    else:
        options: Any = {"compression": "none", "write_page_checksum": True} if name[0] == "b" else {}
        parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
            content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    for on_bad in ("error", "skip"):
        try:
            read_examples(path, on_bad=on_bad)
        except PivotuneError as error:
            assert path.name in str(error) and "\n" not in str(error).partition(": no example to use")[0]


def test_an_english_answer_is_wanted_where_something_reads_it(file: Any) -> None:
    short = {**row(2, english=False), "instruction_en": "Question"}
    path = file("a.jsonl", lines(row(1), short, row(3, english=False)))
    examples, report = read_examples(path)
    assert [example.english and example.english.answer for example in examples] == ["Answer", "", None]
    assert report.notes == {"an English side without an answer": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:2: missing English answer: .* which some\.option: logits reads"):
        read_examples(path, english_answer_for="some.option: logits")
    examples, report = read_examples(path, english_answer_for="some.option: logits", on_bad="skip")
    assert len(examples) == 2 and report.skipped == {"missing English answer": 1}


def test_columns_and_language_of_a_whole_file(file: Any) -> None:
    path = file("a.jsonl", lines(*({"frage": f"问{n}", "antwort": "答", "quelle": "x"} for n in range(3))))
    columns = {"frage": "instruction", "antwort": "output"}
    examples, report = read_examples(path, columns=columns, language="zho_Hans", languages=["Chinese"])
    assert [example.text.question for example in examples] == ["问0", "问1", "问2"]
    assert report.rows == {"zh": 3} and report.notes == {"a field 'quelle' that was not read": 3}
    with pytest.raises(PivotuneError, match=r"language: got 'cn'; .*'zh'"):
        read_examples(path, columns=columns, language="cn")
    with pytest.raises(PivotuneError, match=r"columns: \{frage: frage\} names no field"):
        read_examples(path, columns={"frage": "frage"})


def test_prompts_say_what_they_leave_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"frage": "a", "source": "s"}\n{"frage": "b"}\n', encoding="utf-8")
    assert [prompt.text.question for prompt in read_prompts(path, columns={"frage": "instruction"})] == ["a", "b"]
    assert [one.getMessage() for one in caplog.records] == [f"{path}: rows with a field 'source' that was not read: 1."]
    with pytest.raises(DataError, match=r"--columns: \{frage: instruction, source: output\}"):
        read_prompts(path)


def test_only_a_newline_ends_a_line(file: Any) -> None:
    odd = "a\u2028b\u0085c\x0bd\x0ce"
    path = file("a.jsonl", lines(json.dumps({**row(1), "output": odd}, ensure_ascii=False)))
    examples, _ = read_examples(path)
    assert len(examples) == 1 and examples[0].text.answer.startswith("a\u2028b\u0085c")
