"""Files cut, damaged or with odd ends of lines."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks import load
from pivotune.evaluation.benchmarks.files import read_jsonl, read_zipped_csv
from tests.evaluation.benchmarks.made_up import put_cc


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_flipped_bytes_are_one_error(data: st.DataObject, tmp_path: Path) -> None:
    """zipfile raises whatever it likes at damage; what it does not notice is no error."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/dev/a.csv", "".join(f'"question {n} é",a,b,c,d,A\n' for n in range(20)))
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(20)).encode()
    name, whole, read = data.draw(
        st.sampled_from(
            [
                ("a.zip", packed.getvalue(), lambda path: list(read_zipped_csv(path, "data/dev"))),
                ("a.jsonl.gz", gzip.compress(lines, mtime=0), lambda path: read_jsonl(path, dict)),
                ("a.jsonl", lines, lambda path: read_jsonl(path, dict)),
            ]
        )
    )
    content = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read(path)
    except DataError as error:
        assert str(error).startswith(str(path))


# Text with the separators that some readers take for ends of lines.
line = st.text(st.sampled_from("ab(A) .\x85\u2028\x0b\x1c।。"), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(line, min_size=1, max_size=5))
def test_only_line_feeds_end_lines(prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / "cctuning").mkdir(exist_ok=True)
    put_cc(tmp_path, "XLSum", "split_sample", "ans_sample", "en", prompts, ["s"] * len(prompts))
    assert [item.prompt for item in load("cc_xlsum", "en", tmp_path)] == prompts
