"""Files whole or not at all, on a disk that is full."""

import errno
from pathlib import Path

import pytest

from jobs.atomic_write import append_atomically, atomic_file, write_atomically
from jobs.command_line import reason_of
from tests.support.full_disk import files_no_larger_than


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path):
    """With its permissions; a link stays one."""
    real = tmp_path / "page.html"
    real.write_text("before")
    real.chmod(0o640)
    (tmp_path / "link.html").symlink_to(real)
    write_atomically(tmp_path / "link.html", "caf\udce9")
    assert real.read_text() == r"caf\udce9"
    assert real.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link.html").is_symlink()
    assert names_in(tmp_path) == ["link.html", "page.html"]


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path):
    """And names it, instead of the draft."""
    path = tmp_path / "page.html"
    path.write_text("before")
    with files_no_larger_than(100), pytest.raises(OSError, match=r"page\.html") as raised:
        write_atomically(path, "x" * 1000)
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["page.html"]


def test_an_error_leaves_nothing(tmp_path):
    """Also where there was no file before."""
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "new.png") as draft:
        draft.write_bytes(b"%d" % (1 // 0))
    assert names_in(tmp_path) == []


def test_a_device_is_written_to():
    """/dev/stdout is not replaced by a file."""
    with atomic_file(Path("/dev/null")) as draft:
        assert draft == Path("/dev/null")


def test_a_folder_that_cannot_be_written(tmp_path):
    """The message names the file that was asked for."""
    with pytest.raises(FileNotFoundError) as raised:
        write_atomically(tmp_path / "no" / "page.html", "x")
    assert reason_of(raised.value) == f"{tmp_path}/no/page.html: No such file or directory"


def test_what_does_not_fit_is_not_appended(tmp_path):
    """In part, neither; afterwards there is room again."""
    path = tmp_path / "rows"
    with path.open("ab", buffering=0) as file:
        append_atomically(file, b"a" * 60)
        with files_no_larger_than(100), pytest.raises(OSError, match="rows"):
            append_atomically(file, b"b" * 60)
        assert path.read_bytes() == b"a" * 60
        append_atomically(file, b"c")
    assert path.read_bytes() == b"a" * 60 + b"c"


def test_a_full_disk_says_what_to_do():
    assert reason_of(OSError(errno.ENOSPC, "No space left on device", "a.jsonl")) == (
        "a.jsonl: No space left on device. Free space there, then give the same command again"
    )
