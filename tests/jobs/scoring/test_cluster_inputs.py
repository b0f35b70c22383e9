"""The list of photos that a batch on a cluster reads: every kind of source, here and in an object store."""

import os

import pytest

pytest.importorskip("pyarrow")

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scoring.cluster_images import Images
from jobs.scoring.cluster_inputs import FILE, UNREADABLE, count_rows, filesystem_of, list_photos, parquet_files
from jobs.scoring.cluster_inputs import listed as listed_photos
from jobs.scoring.tables import InputsError
from pipeline.images.fetch import FetchPolicy
from tests.support.s3_server import s3_server


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Lists a source, in parts of two photos, and gives its rows by id."""
    monkeypatch.setattr("jobs.scoring.cluster_inputs.ROWS_AT_ONCE", 2)

    def rows_of(source):
        manifest = tmp_path / "out" / "photos.parquet"
        count = list_photos(str(source), manifest)
        rows = pq.read_table(manifest).to_pylist()
        assert len(rows) == count == count_rows(str(manifest))
        return {row["id"]: row for row in rows}

    return rows_of


def image_column(source):
    """The column of the images in a Parquet source."""
    return listed_photos(source, "").column


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


def test_photos_added_after_the_first_run_are_reported(tmp_path, capsys):
    """The list of that run is read again, so the same command would end with success without them."""
    photos, manifest = tmp_path / "photos", str(tmp_path / "out" / "photos.parquet")
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (photos / name).write_bytes(b"x")
        assert listed_photos(str(photos), manifest).total == 1
        assert ("what was added since is not scored" in capsys.readouterr().err) == (name == "b.jpg")


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
    """Of one file, of a folder of them, of nothing; not of a checkpoint that was never committed, which a full disk may have cut."""
    (tmp_path / "c.pending.parquet").write_bytes(b"PAR1")
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
    for name in ("b", "a"):
        pq.write_table(pa.table({"id": [name], column: [b"x"]}), tmp_path / f"{name}.parquet")
    assert parquet_files(str(tmp_path)) == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert parquet_files(str(tmp_path / "a.parquet")) == [str(tmp_path / "a.parquet")]
    assert parquet_files(str(tmp_path / "gone")) == []
    assert image_column(str(tmp_path)) == column


def test_parquet_of_other_capitals_and_in_folders_below(tmp_path, capsys):
    """The first is read; the second is reported, instead of a batch without it."""
    part, other, partitioned = tmp_path / "part", tmp_path / "other", tmp_path / "partitioned"
    for place in (
        part / "a.parquet",
        part / "b.PARQUET",
        other / "c.parquet",
        other / "deep/d.parquet",
        partitioned / "day=1/e.parquet",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [place.name], "image": [b"x"]}), place)
    assert listed_photos(str(part), "").total == 2
    assert not capsys.readouterr().err
    assert listed_photos(str(other), "").total == 1
    assert f"1 Parquet files in folders below {other} are left out: {other}/deep/d.parquet" in capsys.readouterr().err
    with pytest.raises(InputsError, match=r"there is no photo .*name that of .*day=1/e\.parquet"):
        listed_photos(str(partitioned), str(tmp_path / "out.parquet"))


def test_files_of_macos_in_a_store_are_no_photos(listed):
    filesystem, root = filesystem_of("memory://macos")
    for name in ("a.jpg", "._a.jpg"):
        with filesystem.open_output_stream(f"{root}/{name}") as stream:
            stream.write(b"x")
    assert [row["file_name"] for row in listed("memory://macos").values()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([{"id": ["a", "b", "a"], "image": ["x"] * 3}], r"id 'a' is there more than once"),
        ([{"id": [1], "image": ["x"]}, {"id": [1], "image": ["y"]}], "id 1 is there more than once"),
        ([{"id": ["a", None], "image": ["x"] * 2}], "1 rows have no id"),
        ([{"id": ["a"], "image": ["x"]}, {"id": [1], "image": ["x"]}], "column id has several types: int64, string"),
        ([{"id": ["a"], "image": ["x"]}, {"id": ["b"], "image_url": ["x"]}], "images are in image .string. and image_url"),
        ([{"id": ["a"], "image": ["x"]}, {"id": ["b"], "image": [b"x"]}], "image .binary. and image .string.; .* of one type"),
        ([{"id": ["a"], "image": ["x"]}, {"id": ["b"]}], r"1.parquet: there is no column image; the columns are id"),
        ([{"id": [0.5], "image": ["x"]}], "column id is double, not text or whole numbers"),
        ([{"id": pa.array([], pa.string()), "image": pa.array([], pa.string())}], "there is no row"),
        ([{"id": ["a"]}], "no column image; the columns are id"),
        ([{"image": ["a"]}], "no column id; the columns are image"),
        ([{"x": [1]}], "no column id, image; the columns are x"),
        ([{"id": ["a"], "image": [3]}], "column image is int64, neither bytes nor text"),
        ([{"id": ["a"], "image": [{"bytes": b"image", "path": None}]}], "as Hugging Face writes it: write its `bytes`"),
        ([pa.table([["a"], [b"x"], [b"x"]], names=["id", "image", "image"])], "the column image is there 2 times"),
    ],
)
def test_parquet_that_cannot_be_scored(tmp_path, files, said):
    """Reported before Ray starts, instead of an error in each row. By its id a row that is done is left out when the job goes on."""
    for number, table in enumerate(files):
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), tmp_path / f"{number}.parquet")
    with pytest.raises(InputsError, match=said):
        image_column(str(tmp_path))


def test_files_that_are_no_parquet(tmp_path):
    """One line, not Arrow's traceback; so is a folder of both, of which half would be left out."""
    (tmp_path / "a.parquet").write_bytes(b"no Parquet at all")
    for read in (image_column, count_rows):
        with pytest.raises(InputsError, match=r"a\.parquet: cannot be read as Parquet"):
            read(str(tmp_path))
    (tmp_path / "b.JPG").write_bytes(b"x")
    with pytest.raises(InputsError, match=r"holds photos \(b.JPG\) and Parquet files"):
        image_column(str(tmp_path))


def test_a_list_is_written_whole_or_not_at_all(tmp_path):
    """A run that goes on takes the list it finds for all photos."""
    (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg"}\n{"no": 1}\n')
    with pytest.raises(InputsError, match="line 2"):
        list_photos(str(tmp_path / "rows.jsonl"), tmp_path / "photos.parquet")
    assert not (tmp_path / "photos.parquet").exists()


def test_odd_keys_in_a_bucket(tmp_path):
    """Blanks, #, %, ? and letters of other scripts, in the place and in the photos; read as a worker reads them."""
    names = ["a b.jpg", "c#1.jpg", "d%20e.jpg", "é ü.jpg", "f.jpg"]
    with s3_server():
        filesystem, root = filesystem_of("s3://bucket/my photos#1 100%")
        assert root == "bucket/my photos#1 100%"
        for name in names:
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                stream.write(name.encode())
        assert list_photos("s3://bucket/my photos#1 100%/", tmp_path / "photos.parquet") == len(names)
        rows = pq.read_table(tmp_path / "photos.parquet").to_pylist()
        read = {row["file_name"]: Images(FetchPolicy())._read_file(row["image"]) for row in rows}
    assert read == {name: name.encode() for name in names}


def test_a_parquet_file_with_a_question_mark(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "image": ["x"]}), tmp_path / "a?b.parquet")
    with pytest.raises(InputsError, match="rename it"):
        listed_photos(str(tmp_path), str(tmp_path / "photos.parquet"))
