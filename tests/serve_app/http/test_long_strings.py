"""Long strings are cut out of JSON, and nothing else changes."""

import itertools
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidRequest
from serve_app.http import long_strings
from serve_app.http.contract import MAX_JSON_VALUES, parse_score_request
from serve_app.http.long_strings import cut_out

STRINGS = st.one_of(
    st.text(max_size=12),
    st.text(alphabet='\\"a\n', max_size=12),
    st.integers(8, 40).map(lambda length: "/9j4" * length),
    st.text(alphabet='ab\\"', min_size=30, max_size=80),
)
VALUES = st.recursive(
    STRINGS | st.integers(-(2**63), 2**64 - 1) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner),
)


def put_back(value, strings):
    match value:
        case str():
            return strings.get(value, value)
        case list():
            return [put_back(one, strings) for one in value]
        case dict():
            return {put_back(key, strings): put_back(one, strings) for key, one in value.items()}
    return value


def strings_in(value):
    match value:
        case str():
            yield value
        case list():
            yield from itertools.chain.from_iterable(map(strings_in, value))
        case dict():
            yield from itertools.chain.from_iterable(map(strings_in, [*value, *value.values()]))


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_was_cut_out_stands_where_it_was(value, ascii_only, indent):
    """Whatever the document: strings with quotes, backslashes and letters of any script, long ones or short, keys too. And every long one
    that is written without escapes is cut out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_strings, "MIN_LENGTH", 8)  # as short as what stands between strings
        text, strings = cut_out(bytearray(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()))
    seen = orjson.loads(text)
    assert put_back(seen, strings) == value
    left = [one for one in strings_in(seen) if one not in strings]
    assert not [one for one in left if len(one) >= 8 and one.isascii() and json.dumps(one) == f'"{one}"' and "\x7f" not in one]


def test_the_parser_sees_little_of_a_large_body():
    """Sixty-four images of half a megabyte: a few kilobytes are left."""
    body = json.dumps({"data": ["QUJD" * 120_000] * 64}).encode()
    text, strings = cut_out(body)
    assert len(text) < 10_000
    assert set(strings.values()) == {"QUJD" * 120_000}


LONG = MAX_JSON_VALUES
"""Characters of a string that is cut out by `parse_score_request`, as its body is longer."""


def test_a_message_shows_the_string_and_not_its_token():
    """As for a short one."""
    with pytest.raises(InvalidRequest, match=r"unknown key\(s\) 'k{40}…'"):
        parse_score_request(b'{"input_data": {"' + b"k" * LONG + b'": 1}}')


@pytest.mark.parametrize("between", [", ", ",\n "], ids=["in one line", "in lines"])
def test_a_message_names_the_place_in_the_body(between):
    """And not in what the parser saw."""
    body = (between.join(['{"a": "' + "x" * LONG + '"', '"b": "' + "y" * LONG + '"']) + " oops}").encode()
    with pytest.raises(orjson.JSONDecodeError) as expected:
        orjson.loads(body)
    with pytest.raises(InvalidRequest) as caught:
        parse_score_request(body)
    assert caught.value.message == f"The request body is not valid JSON: {expected.value}."


@pytest.mark.parametrize("bad", ["\n", "\x1f", "\\q"], ids=["line break", "control character", "unknown escape"])
def test_strings_that_json_forbids_stay_forbidden(bad):
    """They are left to the parser, which refuses them."""
    body = b'{"input_data": {"columns": ["image"], "data": ["' + b"QUJD" * LONG + bad.encode() + b'"]}}'
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_score_request(body)


ESCAPED = b'"' + b'\\"' * 90_000 + b'"'


@pytest.mark.parametrize(
    "hostile",
    [
        b",".join([ESCAPED, b'"' + b"A" * 5000 + b'"'] * 4),
        b'"' * 500_000,
        b'\\"' * 300_000,
        b'"' + b"\\" * 1_000_000 + b'"',
        b'"',
    ],
    ids=len,
)
def test_hostile_quotes_are_left_to_the_parser(hostile):
    """Nothing is cut out of them, and it does not take long."""
    assert cut_out(hostile) == (hostile, {})
