"""Reads JSON with long strings without blocking other threads: short tokens replace them while it is parsed.

    {"data": ["/9j/4AAQ…", …]} ─▶ cut_out ─▶ {"data": ["<token 0>", …]} ─▶ orjson, small   and {token 0: "/9j/4AAQ…"}

A JSON parser holds the GIL for the whole body: 60 ms for 31 MB. Each step here holds it for a few milliseconds at most.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import islice

import numpy as np

MIN_LENGTH = 4096
SHOWN = 40
"""Characters that a token shares with the beginning of its string, for error messages: `pipeline.errors.quoted` shows no more."""
MAX_STRINGS = 100_000
MAX_ESCAPED_QUOTES = 10_000
"""No valid request has more strings, or so many quotes within strings; such a body is left to the parser. 15 million escaped quotes
(31 MB) took 6 s here."""
_COUNTED_AT_ONCE = 2**20
_UNGUESSABLE = secrets.token_hex(8)
"""Part of every token of this process, so that no body can contain a token. Making random bytes for each request would release the GIL."""


def cut_out(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, str]]:
    """Replace every long string that is plain ASCII without escapes, such as base64, by a token.

    Args:
        body: JSON text; invalid JSON stays invalid.
    Returns:
        The text with tokens, and the string of each token.
    """
    if b"\\" in body and has_more_than(MAX_ESCAPED_QUOTES, [b'\\"'], body):
        return body, {}
    view, codes = memoryview(body), np.frombuffer(body, np.uint8)
    copied, opening = 0, body.find(b'"')
    parts: list[bytes | memoryview] = []
    strings: dict[str, str] = {}
    for _ in range(MAX_STRINGS):
        closing = _closing_quote(body, opening + 1) if opening >= 0 else -1
        if closing < 0:
            break
        start = opening + 1
        if closing - start >= MIN_LENGTH and _is_plain(body, codes, start, closing):
            text = str(view[start:closing], "ascii")
            token = f"{text[:SHOWN]}{_UNGUESSABLE}-{len(strings)}"
            strings[token] = text
            parts += [view[copied:start], token.encode()]
            copied = closing
        opening = body.find(b'"', closing + 1)
    else:
        return body, {}
    return (b"".join([*parts, view[copied:]]) if strings else body), strings


def cut_before(position: int, text: str, strings: dict[str, str]) -> int:
    """Number of characters by which `cut_out` shortened the body before a position.

    Args:
        position: in `text`.
        text, strings: from `cut_out`.
    """
    if not strings:
        return 0
    made = text.count(_UNGUESSABLE, 0, position)
    return sum(len(string) - len(token) for token, string in islice(strings.items(), made))


def has_more_than(limit: int, marks: Sequence[bytes], body: bytes | bytearray) -> bool:
    """Whether `marks` occur more than `limit` times; counts in steps, between which other threads run."""
    if len(body) <= limit:
        return False
    count = 0
    for start in range(0, len(body), _COUNTED_AT_ONCE):
        count += sum(body.count(mark, start, start + _COUNTED_AT_ONCE) for mark in marks)
        if count > limit:
            return True
    return False


def _closing_quote(body: bytes | bytearray, start: int) -> int:
    """Position of the first unescaped quote; -1 if there is none."""
    quote = body.find(b'"', start)
    while quote >= 0 and body[quote - 1] == ord("\\"):
        before = bytes(body[max(start, quote - 64) : quote])
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes == len(before) and quote - start > len(before):
            return -1  # more backslashes than any valid request has: left to the parser
        if backslashes % 2 == 0:
            break
        quote = body.find(b'"', quote + 1)
    return quote


def _is_plain(body: bytes | bytearray, codes: np.ndarray, start: int, end: int) -> bool:
    """Whether a string is printable ASCII without escapes."""
    return body.find(b"\\", start, end) < 0 and bool(codes[start:end].min() >= ord(" ")) and bool(codes[start:end].max() < 0x7F)
