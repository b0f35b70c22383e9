"""Parses multipart/form-data (RFC 7578) in memory, in time that grows with the body's size only.

    --boundary ⏎ headers ⏎ ⏎ data ⏎ --boundary ⏎ … ⏎ --boundary--  ─▶ parse_form ─▶ files, fields

Only the boundary is taken from the Content-Type: names and values are UTF-8, whatever charset the client gives. Forms that RFC 2046 forbids
are refused: a line in a part's data that begins with the boundary, or a form without its closing boundary, whose last part is cut off.

Not by a library: python-multipart, which Starlette uses, runs a Python loop for each line that begins like the boundary. 31 MB of such
lines blocked the event loop for 4 s; here they take 0.05 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deployments.params import check_image_count
from pipeline.errors import InvalidRequest

MAX_FIELDS = 32
MAX_FIELD_BYTES = 65_536
MAX_HEADERS_BYTES = 4096
"""Most bytes of all headers of a part."""
MAX_BOUNDARY_CHARS = 70
"""The limit of RFC 2046."""
_SEARCHED_AT_ONCE = 2**20
"""Other threads can run between these steps."""
_LINE_END = re.compile(rb"[ \t]{0,100}\r\n")
_FOLD = re.compile(rb"\r\n[ \t]+")
"""A header that goes on in the next line (RFC 5322), as Python's `email` writes those of more than 78 characters."""
_PARAMETER = re.compile(rb"""[ \t]*;[ \t]*(?:([\w!#$%&'*+.^`|~-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;"]*)))?""", re.DOTALL)


def parse_form(
    body: bytes | bytearray, content_type: str, max_files: int
) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """Read the parts of a form.

    Args:
        body: as received.
        content_type: the header, with the boundary.
        max_files: most files (setting ingress.max_images_per_request).
    Returns:
        The files, which are the parts with a filename, and the other fields, in order: name and content of each.
    Raises:
        InvalidRequest: it is not a form, or holds more fields or longer ones than the limits above.
        LimitExceeded: too many files.
    """
    files: list[tuple[str, bytes]] = []
    fields: list[tuple[str, str]] = []
    for headers, data in _parts(body, b"\r\n--" + _boundary(content_type)):
        name, is_file = _name_of(headers)
        if is_file:
            check_image_count(len(files) + 1, max_files)
            files.append((name, bytes(data)))
        elif len(fields) == MAX_FIELDS:
            raise _fault(f"it has more than {MAX_FIELDS} fields that are not files")
        elif len(data) > MAX_FIELD_BYTES:
            raise _fault(f"a field that is not a file (a part with a filename) has more than {MAX_FIELD_BYTES} bytes")
        else:
            fields.append((name, str(data, "utf-8", "replace")))
    return files, fields


def _boundary(content_type: str) -> bytes:
    boundary = _parameters(content_type.encode("latin-1")).get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_CHARS:
        library = "HTTP libraries write the header with one if you do not set it"
        raise _fault(f"its Content-Type must have a boundary of 1 to {MAX_BOUNDARY_CHARS} characters ({library})")
    return boundary


def _parts(body: bytes | bytearray, delimiter: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The headers and the data of each part."""
    view = memoryview(body)
    first = -2 if body.startswith(delimiter[2:]) else _find(body, delimiter, 0, "its boundary is not in the body")
    after = first + len(delimiter)
    while not body.startswith(b"--", after):
        line_end = _LINE_END.match(body, after)
        if line_end is None:
            raise _fault("a line begins with the boundary and goes on")
        blank_line = body.find(b"\r\n\r\n", line_end.end(), line_end.end() + MAX_HEADERS_BYTES)
        if blank_line < 0:
            raise _fault(f"a part has no headers, no end of them, or more than {MAX_HEADERS_BYTES} bytes of them")
        end = _find(body, delimiter, blank_line + 4, "it has no closing boundary, so a part of it is missing")
        yield bytes(view[line_end.end() : blank_line]), view[blank_line + 4 : end]
        after = end + len(delimiter)


def _find(body: bytes | bytearray, wanted: bytes, start: int, otherwise: str) -> int:
    """As `body.find`, in steps between which other threads can run; refuses the form if it finds nothing."""
    for step in range(start, len(body), _SEARCHED_AT_ONCE):
        at = body.find(wanted, step, step + _SEARCHED_AT_ONCE + len(wanted) - 1)
        if at >= 0:
            return at
    raise _fault(otherwise)


def _name_of(headers: bytes) -> tuple[str, bool]:
    """The name of a part, and whether it is a file."""
    for line in _FOLD.sub(b" ", headers).split(b"\r\n"):
        label, colon, value = line.partition(b":")
        if not colon:
            raise _fault("a line of a part's headers has no colon")
        if label.strip().lower() == b"content-disposition":
            given = _parameters(value)
            if b"name" in given:
                return given[b"name"].decode("utf-8", "replace"), not given.keys().isdisjoint({b"filename", b"filename*"})
    raise _fault("a part has no Content-Disposition header with a name")


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """The parameters of a header, such as `; name="a"; filename="b"`, with their names in lower case."""
    given: dict[bytes, bytes] = {}
    header = header.rstrip()
    position = header.find(b";")
    while 0 <= position < len(header):
        match = _PARAMETER.match(header, position)
        if match is None:
            raise _fault("the parameters of a header cannot be read")
        name, quoted, plain = match.groups()
        if name is not None:
            given[name.lower()] = plain.strip() if quoted is None else quoted
        position = match.end()
    return given


def _fault(why: str) -> InvalidRequest:
    return InvalidRequest(f"The multipart form cannot be parsed: {why}.")
