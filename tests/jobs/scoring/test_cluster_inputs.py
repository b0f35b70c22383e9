"""The list of photos that a batch on a cluster reads: every kind of source, here and in an object store."""

import os

import pytest

pytest.importorskip("pyarrow")

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scoring.batch_inputs import InputsError
from jobs.scoring.cluster_inputs import FILE, UNREADABLE, count_rows, filesystem_of, image_column, list_photos, parquet_files
from tests.support.s3_server import s3_server


@pytest.fixture
def listed(tmp_path):
    """Lists a source, and gives its rows by id."""

    def rows_of(source):
        manifest = tmp_path / "out" / "photos.parquet"
        count = list_photos(str(source), manifest)
        rows = pq.read_table(manifest).to_pylist()
        assert len(rows) == count == count_rows(str(manifest))
        return {row["id"]: row for row in rows}

    return rows_of


def test_a_folder_here(tmp_path, listed):
    """Absolute paths, so that every node finds them; a name that is no UTF-8 travels as its bytes."""
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jfif", "notes.txt", os.fsdecode(b"caf\xe9.jpg")):
        (photos / name).write_bytes(b"x")
    rows = listed(photos)
    assert set(rows) == {"a.jpg#0", "deep/b.jfif#0", r"caf\xe9.jpg#0"}
    assert rows["a.jpg#0"] == {"id": "a.jpg#0", "file_name": "a.jpg", "row_number_per_file": 0, "image": str(photos / "a.jpg")}
    assert rows[r"caf\xe9.jpg#0"]["image"] == f"{FILE}{photos}/caf%E9.jpg"


def test_a_table(tmp_path, listed):
    """Its cells as they are; one that names no image has the reason in its place."""
    (tmp_path / "list.csv").write_text("image\nhttps://example.com/x.jpg\ns3://bucket/x.jpg\nhere.jpg\n")
    rows = listed(tmp_path / "list.csv")
    assert rows["list.csv#0"]["image"] == "https://example.com/x.jpg"
    assert rows["list.csv#1"]["image"].startswith(UNREADABLE)
    assert rows["list.csv#2"]["image"] == str(tmp_path / "here.jpg")


def test_an_object_store(listed):
    """Any that pyarrow or fsspec knows: photos at any depth, under their own scheme."""
    memory = fsspec.filesystem("memory")
    for name in ("/bucket/photos/1.jpg", "/bucket/photos/deep/2.PNG", "/bucket/photos/notes.txt"):
        memory.pipe(name, b"x")
    rows = listed("memory://bucket/photos")
    assert set(rows) == {"1.jpg#0", "deep/2.PNG#0"}
    filesystem, path = filesystem_of(rows["1.jpg#0"]["image"])
    assert filesystem.open_input_stream(path).read() == b"x"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("source", ["nosuchscheme://x/y", "memory://nothing/there"])
def test_stores_that_cannot_be_read(source, listed):
    with pytest.raises(InputsError, match=source.split("://")[0]):
        listed(source)


def test_rows_are_counted_in_footers(tmp_path):
    """Of one file, of a folder of them, of nothing."""
    for name, rows in (("a.parquet", 3), ("b.parquet", 4)):
        pq.write_table(pa.table({"x": list(range(rows))}), tmp_path / name)
    assert count_rows(str(tmp_path)) == 7
    assert count_rows(str(tmp_path / "a.parquet")) == 3
    assert count_rows(str(tmp_path / "gone")) == 0


def test_s3():
    """Photos at any depth of a bucket on an S3 server, listed there, too; a file is read again by its URL."""
    with s3_server():
        filesystem, root = filesystem_of("s3://bucket/photos")
        for name in ("1.jpg", "deep/2.jpg", "notes.txt"):
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                stream.write(b"x")
        assert list_photos("s3://bucket/photos", "s3://bucket/out/photos.parquet") == 2
        rows = pq.read_table("bucket/out/photos.parquet", filesystem=filesystem).to_pylist()
        assert {row["image"] for row in rows} == {"s3://bucket/photos/1.jpg", "s3://bucket/photos/deep/2.jpg"}
        assert count_rows("s3://bucket/out") == 2


@pytest.mark.parametrize("column", ["image", "image_url"])
def test_parquet_sources(tmp_path, column):
    """A file, or a folder of them; the column of images has one of two names."""
    table = pa.table({"id": ["a"], column: [b"x"]})
    pq.write_table(table, tmp_path / "b.parquet")
    pq.write_table(table, tmp_path / "a.parquet")
    assert parquet_files(str(tmp_path)) == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert parquet_files(str(tmp_path / "a.parquet")) == [str(tmp_path / "a.parquet")]
    assert parquet_files(str(tmp_path / "gone")) == []
    assert image_column(str(tmp_path)) == column


@pytest.mark.parametrize(("columns", "missing"), [({"id": ["a"]}, "image"), ({"image": ["a"]}, "id"), ({"x": [1]}, "id, image")])
def test_parquet_without_a_column(tmp_path, columns, missing):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputsError, match=f"no column {missing}; the columns are {next(iter(columns))}"):
        image_column(str(tmp_path / "a.parquet"))
