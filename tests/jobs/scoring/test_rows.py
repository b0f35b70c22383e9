"""Rows of a batch as lines of every format."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.scoring.rows import FORMATS, Row, format_of


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
