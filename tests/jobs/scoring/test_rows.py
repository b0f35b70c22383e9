"""Rows of a batch as lines of every format."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scoring.rows import FORMATS, Row, format_of, read_rows


@given(
    st.integers(0, 10**9),
    st.text().filter(str.isprintable),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
def test_any_row_is_one_line(number, name, more):
    """Whatever stands in it."""
    row = Row(number, {"boxes": [more]}, name)
    for form in FORMATS.values():
        line = form.encode(row)
        assert "\n" not in line
        assert form.decode(line) == row
        assert all(form.is_cut(line.encode()[:length]) for length in range(1, len(line.encode())))


def test_the_format_is_the_suffix(tmp_path):
    names = ["a.csv", "a.jsonl", "a.parquet", "a.txt", "a"]
    assert [format_of(tmp_path / name, None) for name in names] == ["csv", "jsonl", "parquet", "jsonl", "jsonl"]
    assert format_of(tmp_path / "a.csv", "boxes") == "boxes"


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["as jq writes", "as Python writes"])
def test_rows_that_other_programs_wrote_again(tmp_path, separators):
    """Without blanks, and with the keys in another order."""
    rows = [Row(0, {"boxes": []}, "a.jpg"), Row(1, {"boxes": []}, "b.jpg")]
    turned = [dict(reversed(row._asdict().items())) for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, separators=separators) + "\n" for row in turned))
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows
    boxes = [json.dumps(json.loads(FORMATS["boxes"].encode(row)), separators=separators) for row in rows]
    (tmp_path / "boxes.jsonl").write_text("\n".join(boxes))
    assert list(read_rows(tmp_path / "boxes.jsonl")) == rows
