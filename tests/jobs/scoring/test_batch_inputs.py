"""Inputs of a batch: every kind of source, and each of its rows once."""

import base64
import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.photos import photo_suffixes
from jobs.scoring.batch_inputs import Photo, Source, shown
from jobs.scoring.tables import InputsError, Unreadable, image_of_cell, looks_like_base64


def encoded(kind="JPEG", size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


def write_csv(path, *cells, column="image"):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", column])
        rows.writerows(enumerate(cells))
    return path


def test_suffixes_are_those_of_what_is_decoded():
    """Cameras and browsers write more than .jpg; HEIC is not read."""
    assert {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".jps",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".avif",
    } <= photo_suffixes()
    assert not {".heic", ".pdf", ".txt", ".mp4"} & photo_suffixes()


def test_a_folder(tmp_path):
    """Photos at any depth, and what is skipped is counted by suffix."""
    (tmp_path / "deep").mkdir()
    for name in ("a.JPG", "deep/b.jfif", "c.heic", "deep/d.HEIC", "notes"):
        (tmp_path / name).write_bytes(b"x")
    source = Source(str(tmp_path))
    assert {photo.key for photo in source} == {("a.JPG", 0), ("deep/b.jfif", 0)}
    assert source.skipped == {".heic": 2, "no suffix": 1}
    assert {photo.key for photo in source} == {("a.JPG", 0), ("deep/b.jfif", 0)}, "a second pass gives the same"


def test_names_that_are_not_utf8(tmp_path):
    """As an old zip leaves them: a name that can be written, and the file is found."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (tmp_path / "two\nlines.jpg").write_bytes(b"y")
    photos = {photo.file_name: photo.text() for photo in Source(str(tmp_path))}
    assert photos == {r"caf\xe9.jpg": "eA==", r"two\nlines.jpg": "eQ=="}


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
ALIKE = st.text(st.sampled_from("\\nxu0851e\n\x1b\x85\u2028\udce9"), min_size=1, max_size=8).map(os.fsencode)


@given(NAMES | ALIKE)
def test_any_name_can_be_written(name):
    """On one line, as UTF-8."""
    text = shown(Path("/x", os.fsdecode(name)), Path("/x"))
    assert text.encode().decode().splitlines() == [text]


@given(st.sets(NAMES | ALIKE, min_size=2))
def test_two_names_have_two_texts(names):
    """Else one of the photos would count as done before it is."""
    assert len({shown(Path("/x", os.fsdecode(name)), Path("/x")) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    ["Screenshot 3.04\u202fPM.png", "nb\u00a0sp.jpg", "\U0001f469\u200d\U0001f4bb.jpg", "cafe\u0301.jpg", r"a\b.jpg", " %#?"],
)
def test_a_name_stays(name):
    """macOS puts U+202F into the names of screenshots; annotations know the photo by that name."""
    assert shown(Path("/x", name), Path("/x")) == name


def test_what_is_not_a_file_is_counted(tmp_path):
    """Links in a circle too, which the whole folder was refused for."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "more").mkdir()
    for name, target in (("circle.jpg", "circle.jpg"), ("gone.jpg", "nowhere"), ("link", "more")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.jpg")
    source = Source(str(tmp_path))
    assert [photo.file_name for photo in source] == ["a.jpg"]
    assert source.skipped == {"broken links": 2, "links to folders (they are not followed)": 1, "pipes, sockets or devices": 1}


def test_a_folder_of_links_to_folders(tmp_path):
    """Says so, where all photos lie behind them."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputsError, match=r"there is no photo .*1 links to folders \(they are not followed\)"):
        list(Source(str(tmp_path)))


def test_the_notebooks_csv(tmp_path):
    """`base64.encodebytes`, with line breaks, in a cell far over Python's limit: clean base64, named by file and row."""
    photo = encoded("PNG", 300) + bytes(200_000)
    table = write_csv(tmp_path / "image_list.csv", base64.encodebytes(photo).decode(), base64.b64encode(encoded()).decode())
    first, second = Source(str(table))
    assert (first.key, second.key) == (("image_list.csv", 0), ("image_list.csv", 1))
    assert base64.b64decode(first.text(), validate=True) == photo
    assert base64.b64decode(second.text(), validate=True) == encoded()


def test_cells_of_every_kind(tmp_path):
    """URLs and data: URLs as they are, paths from the table's folder, and what is none of these is reported in its row."""
    (tmp_path / "a b.jpg").write_bytes(b"photo")
    cells = ["https://example.com/x.jpg", "data:image/png;base64,aGk=", "a b.jpg", "", "s3://bucket/x.jpg", "gone.jpg"]
    photos = list(Source(str(write_csv(tmp_path / "list.csv", *cells))))
    assert [photos[0].text(), photos[1].text(), photos[2].text()] == [*cells[:2], "cGhvdG8="]
    with pytest.raises(Unreadable, match="The cell is empty"):
        photos[3].text()
    with pytest.raises(Unreadable, match=r"http:// and https:// only, not s3://.*jobs.batch_ray"):
        photos[4].text()
    with pytest.raises(FileNotFoundError):
        photos[5].text()
    assert [photo.row for photo in photos] == list(range(6))


def test_paths_as_windows_writes_them(tmp_path):
    """Unless a file is called so."""
    (tmp_path / "part").mkdir()
    for name in ("part/a.jpg", r"b\c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    photos = Source(str(write_csv(tmp_path / "list.csv", r"part\a.jpg", r".\part\a.jpg", r"b\c.jpg")))
    assert [photo.text() for photo in photos] == ["eA=="] * 3


def test_a_csv_that_is_not_utf8(tmp_path):
    """Its paths are those of the files."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (tmp_path / "list.csv").write_bytes(b"image\ncaf\xe9.jpg\nhttp://caf\xe9.example/x.jpg\n")
    good, bad = Source(str(tmp_path / "list.csv"))
    assert good.text() == "eA=="
    assert isinstance(bad.image, Unreadable)


def test_a_folder_of_tables(tmp_path):
    """As AzureML's batch endpoint reads a folder of CSVs."""
    (tmp_path / "part").mkdir()
    write_csv(tmp_path / "b.csv", "https://example.com/1.jpg", "https://example.com/2.jpg")
    write_csv(tmp_path / "part" / "a.csv", "https://example.com/3.jpg")
    source = Source(str(tmp_path))
    assert [photo.key for photo in source] == [("b.csv", 0), ("b.csv", 1), ("part/a.csv", 0)]
    assert not source.skipped


def test_jsonl_finds_photos_by_the_end_of_their_url(tmp_path):
    """`azureml://` and `AmlDatastore://`: the longest end of the path that is a file."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"right")
    (tmp_path / "1.jpg").write_bytes(b"wrong")
    root = "azureml://subscriptions/x/datastores/workspaceblobstore/paths/LocalUpload/abc/odFridgeObjectsMask"
    urls = [f"{root}/images/1.jpg", "AmlDatastore://store/images/1.jpg", f"{root}/images/9.jpg", "https://example.com/x.jpg"]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"image_url": url, "label": []}) for url in urls) + "\n\n")
    photos = list(Source(str(tmp_path / "train.jsonl")))
    assert photos[0].image == photos[1].image == tmp_path / "images" / "1.jpg"
    assert isinstance(photos[2].image, Unreadable)
    assert photos[3].text() == urls[3]


def test_mltable(tmp_path):
    """The folder itself, or the file in it: what its paths name."""
    write_csv(tmp_path / "a.csv", "https://example.com/1.jpg")
    (tmp_path / "b.jsonl").write_text('{"image_url": "https://example.com/2.jpg"}\n')
    (tmp_path / "MLTable").write_text(
        "paths:\n  - file: ./b.jsonl\n  - pattern: ./*.csv\ntransformations:\n  - read_json_lines: {}\n"
    )
    for place in (tmp_path, tmp_path / "MLTable"):
        assert [photo.key for photo in Source(str(place))] == [("b.jsonl", 0), ("a.csv", 0)]


def test_an_mltable_of_tables_elsewhere(tmp_path):
    """Two of the same name have rows of their own; a table that two patterns match is read once."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text("image\na.jpg\n")
    (tmp_path / "set").mkdir()
    entries = [f"  - file: {tmp_path / folder / 'x.csv'}\n" for folder in ("one", "two", "one")]
    (tmp_path / "set" / "MLTable").write_text("paths:\n" + "".join(entries))
    keys = [photo.key for photo in Source(str(tmp_path / "set"))]
    assert keys == [(f"{tmp_path}/one/x.csv", 0), (f"{tmp_path}/two/x.csv", 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing: 1", "not an MLTable"),
        ("[", "not an MLTable"),
        ("paths:\n  - file: azureml://datastores/x/train.jsonl", "not on this machine"),
        ("paths: []", "list no tables"),
        ("paths:\n  - file: ./photo.jpg", "file ./photo.jpg: there is no file"),
        ("paths:\n  - file: ./MLTable", "file ./MLTable: there is no table"),
        ("paths:\n  - file: a.csv\n  - pattern: ./b*.csv", r"pattern ./b\*.csv: there is no file"),
        ("paths:\n  - file: a.csv\n  - pattern: /nowhere/*.csv", "there is no file"),
        ("paths:\n  - pattern: ./", "there is no table"),
    ],
)
def test_mltables_that_cannot_be_read(tmp_path, text, said):
    """One path of several that has nothing is named, too: its photos would be missing without a word."""
    (tmp_path / "MLTable").write_text(text)
    (tmp_path / "a.csv").write_text("image\na.jpg\n")
    with pytest.raises(InputsError, match=said):
        list(Source(str(tmp_path)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"url": "x"}', "no `image_url` or"),
        ("[]", "no `image_url`"),
    ],
    ids=["not JSON", "too deep", "no image", "no object"],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    (tmp_path / "x.jsonl").write_text('{"image_url": "a.jpg"}\n' + line + "\n")
    with pytest.raises(InputsError, match=said):
        list(Source(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gone", "no such file"),
        ("s3://bucket/photos", "jobs.batch_ray"),
        ("notes.txt", "neither a folder nor a table"),
        ("", "the source is empty"),  # a variable that is not set is not the current folder
    ],
)
def test_invalid_sources_are_refused(tmp_path, monkeypatch, place, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputsError, match=said):
        Source(place)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_base64_of_every_format_is_not_a_path(kind):
    """However short it is."""
    assert looks_like_base64(base64.b64encode(encoded(kind)).decode())
    assert looks_like_base64(base64.encodebytes(encoded(kind)).decode())


@given(st.text(max_size=60))
def test_every_cell_gives_text_a_file_or_a_reason(text):
    """Text for the service, a file, or a reason."""
    image = image_of_cell(text, Path("/nowhere"))
    assert isinstance(image, (Path, str, Unreadable))
    if isinstance(image, str):
        image.encode()


def test_a_photo_says_where_it_is():
    """For messages."""
    assert str(Photo("a/b.jpg", 0, Path("b.jpg"))) == "a/b.jpg"
    assert str(Photo("list.csv", 3, "aGk=")) == "list.csv, row 3"


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_lists_of_windows(tmp_path, name):
    """A byte order mark and CRLF are read; UTF-16 is reported."""
    text = "image\r\na.jpg\r\n" if name == "list.csv" else '{"image": "a.jpg"}\r\n'
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    (photo,) = Source(str(tmp_path / name))
    assert photo.image == tmp_path / "a.jpg"
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    with pytest.raises(InputsError, match=r"it is UTF-16, .* save it as UTF-8"):
        list(Source(str(tmp_path / name)))


def test_names_that_python_wrote_as_surrogates(tmp_path):
    """json.dumps(os.listdir(…)) of a name that is not UTF-8."""
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image_url": name}) + "\n")
    (photo,) = Source(str(tmp_path / "list.jsonl"))
    assert photo.text() == "eA=="


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('image\n"a.jpg\nb.jpg\n', "list.csv, line 3: not CSV: unexpected end of data. Is a quotation mark missing"),
        ("image,x,image\na.jpg,1,b.jpg\n", "the column `image` is there 2 times"),
    ],
)
def test_csv_in_which_photos_would_be_lost(tmp_path, text, said):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputsError, match=said):
        list(Source(str(tmp_path / "list.csv")))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("a\0.jpg", "The cell has a zero byte."),
        (5, "The cell is not text: 5."),
        (None, "The cell is empty."),
        ("pipe", "It is a pipe"),
    ],
)
def test_cells_that_are_no_photo(tmp_path, cell, said):
    """Each is a row with its reason; nothing waits for a pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": cell}) + "\n")
    (photo,) = Source(str(tmp_path / "list.jsonl"))
    with pytest.raises(Unreadable, match=said):
        photo.text()


def test_files_of_macos_are_no_photos(tmp_path):
    """Archives made there hold one beside each photo, of the same suffix."""
    (tmp_path / "__MACOSX").mkdir()
    for name in ("a.jpg", "._a.jpg", "__MACOSX/._a.jpg"):
        (tmp_path / name).touch()
    source = Source(str(tmp_path))
    assert [photo.file_name for photo in source] == ["a.jpg"]
    assert "2 of macOS (._…)" in source.left_out()


@pytest.mark.parametrize(("rows", "run"), [("preds.csv", "preds.csv.run"), ("preds.parquet.jsonl", "preds.parquet.run")])
def test_rows_beside_their_tables_are_not_read(tmp_path, rows, run):
    """The same command, given again, would take them for a table of photos."""
    (tmp_path / "a.csv").write_text("image\na.jpg\n")
    for name in (rows, run):
        (tmp_path / name).write_text("{}\n")
    source = Source(str(tmp_path))
    assert [photo.file_name for photo in source] == ["a.csv"]
    assert "1 rows of jobs.batch_score" in source.left_out()
