"""Forms as clients write them, what is refused, and the limits."""

import httpx
import pytest
import requests

from pipeline.errors import InvalidRequest, LimitExceeded
from serve_app.http import form
from serve_app.http.form import MAX_FIELD_BYTES, MAX_FIELDS, MAX_HEADERS_BYTES, parse_form

OF_B = "multipart/form-data; boundary=b"
PHOTO = b"\xff\xd8\xff \r\n--\r\n--a\r\n\r\n-- and its end\r"
URL = "http://service"


def part(disposition, data=b"1", more=b""):
    return b"--b\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n" + data + b"\r\n"


def file(data=PHOTO, name=b"i"):
    return part(b'form-data; name="' + name + b'"; filename="a.jpg"', data, b"Content-Type: image/jpeg\r\n")


END = b"--b--\r\n"


@pytest.mark.parametrize("library", [httpx.Request, lambda *args, **more: requests.Request(*args, **more).prepare()])
def test_forms_of_python_clients(library):
    """A boundary of their own, files and fields in order."""
    files = [("image", ('ä b;"c".jpg', PHOTO)), ("other", ("b.png", b""))]
    request = library("POST", URL, files=files, data={"labels": ["größer", "b"]})
    body = request.read() if isinstance(request, httpx.Request) else request.body
    found = parse_form(body, request.headers["content-type"], 2)
    assert found == ([("image", PHOTO), ("other", b"")], [("labels", "größer"), ("labels", "b")])


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="image"; filename="a.jpg"',
        b"form-data; name=image; filename=a.jpg; filename*=utf-8''a.jpg",  # .NET
        b"form-data; name=\"image\"; filename*=utf-8''gr%C3%B6%C3%9Fer.jpg",  # urllib3 before 1.25
        b'form-data; name="image";\r\n filename="a.jpg"',  # Python's email
        b'form-data;name="image";filename=""',
        b'form-data; name="image"; filename="C:\\dir\\a.jpg"',
        b'form-data; name="image"; filename="a; name=\\"x\\";.jpg"',
        b'FORM-DATA ; Name = image ; FileName = "a" ; ',
    ],
)  # fmt: skip
def test_files_of_other_clients(disposition):
    """A part with a filename is a file, however it is written."""
    assert parse_form(part(disposition, PHOTO) + END, OF_B, 1) == ([("image", PHOTO)], [])


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b",
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data;charset=utf-16;Boundary=b;",
        "multipart/form-data; charset=punycode; boundary=b",
    ],
)
def test_boundaries_are_found_and_charsets_ignored(content_type):
    body = b"preamble\r\n" + part('form-data; name="é"'.encode(), "é".encode()) + file() + END + b"epilogue\r\n--b"
    assert parse_form(body, content_type, 1) == ([("i", PHOTO)], [("é", "é")])


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_a_boundary_is_found_across_steps(monkeypatch, at_once):
    """Wherever a step of the search ends."""
    monkeypatch.setattr(form, "_SEARCHED_AT_ONCE", at_once)
    body = bytearray(b"\r\n" + file() + file(b"") + part(b'form-data; name="a"') + END.rstrip())
    assert parse_form(body, OF_B, 2) == ([("i", PHOTO), ("i", b"")], [("a", "1")])


def test_text_that_is_not_utf_8_is_replaced():
    """Names and values alike; nothing that UTF-8 cannot express comes out."""
    (field,) = parse_form(part(b'form-data; name="a\xff"', b"\xed\xa0\x80") + END, OF_B, 1)[1]
    assert field[0] == "a\ufffd"
    assert field[1].encode().decode() == field[1]


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        pytest.param(
            file() + END, "multipart/form-data", "of 1 to 70 characters (HTTP libraries write the header", id="no boundary"
        ),
        pytest.param(file() + END, f"{OF_B}{'b' * 70}", "must have a boundary", id="long boundary"),
        pytest.param(file() + END, 'multipart/form-data; boundary="b', "parameters of a header", id="open quote"),
        pytest.param(PHOTO, OF_B, "its boundary is not in the body", id="no form"),
        pytest.param(b"--b\n", OF_B, "goes on", id="no CR"),
        pytest.param(file(b"\r\n--bx") + END, OF_B, "a line begins with the boundary and goes on", id="line like the boundary"),
        pytest.param(file() + file()[:-2], OF_B, "no closing boundary, so a part of it is missing", id="cut off"),
        pytest.param(file() + file()[:30], OF_B, "no end of them", id="cut off in the headers"),
        pytest.param(b"--b\r\n\r\nx\r\n" + END, OF_B, "no headers", id="no headers"),
        pytest.param(part(b"form-data"), OF_B, "no closing", id="no name, cut off"),
        pytest.param(part(b"form-data") + END, OF_B, "no Content-Disposition header with a name", id="no name"),
        pytest.param(part(b'form-data; name="a', PHOTO) + END, OF_B, "parameters of a header", id="open quote of a part"),
        pytest.param(b"--b\r\nContent-Disposition\r\n\r\nx\r\n" + END, OF_B, "no colon", id="no colon"),
        pytest.param(part(b"a", more=b"A: " + b"a" * MAX_HEADERS_BYTES) + END, OF_B, "more than 4096 bytes", id="headers"),
        pytest.param(part(b"a;name=a", b"a" * (MAX_FIELD_BYTES + 1)) + END, OF_B, "more than 65536 bytes", id="field"),
        pytest.param(part(b"a;name=a") * (MAX_FIELDS + 1) + END, OF_B, "more than 32 fields", id="fields"),
    ],
)
def test_refused(body, content_type, said):
    with pytest.raises(InvalidRequest, match="The multipart form cannot be parsed: ") as refusal:
        parse_form(body, content_type, 3)
    assert said in refusal.value.message


def test_limits_are_inclusive():
    """So much is taken: files, fields, bytes of a field."""
    body = file() * 3 + part(b"a;name=a", b"a" * MAX_FIELD_BYTES) * MAX_FIELDS + END
    files, fields = parse_form(body, "multipart/form-data; boundary=b", 3)
    assert (len(files), len(fields), len(fields[0][1])) == (3, MAX_FIELDS, MAX_FIELD_BYTES)
    with pytest.raises(LimitExceeded, match="has 3 images; the limit is 2"):
        parse_form(body, OF_B, 2)
