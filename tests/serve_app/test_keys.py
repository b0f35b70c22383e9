"""Bearer keys: sources, rotation, refusals."""

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError, Unauthorized
from serve_app.keys import KeyRing, main


def test_open_without_sources():
    """No source, no check."""
    KeyRing().check(None)


def test_keys_from_the_environment(monkeypatch):
    """A primary and a secondary key both open; the scheme's letter case does not matter."""
    monkeypatch.setenv("FIRST", "one")
    monkeypatch.setenv("SECOND", "two")
    ring = KeyRing(["FIRST", "SECOND"])
    ring.check("Bearer one")
    ring.check("bearer two")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic one", "Bearer three", "Bearer onetwo", "one", "Bearer ünë"]
)
def test_wrong_or_missing_key(monkeypatch, header):
    """Anything else is a 401 that does not repeat the key."""
    monkeypatch.setenv("FIRST", "one")
    with pytest.raises(Unauthorized) as caught:
        KeyRing(["FIRST"]).check(header)
    assert caught.value.status == 401
    assert "three" not in caught.value.message


def test_file_rotates_without_restart(tmp_path, caplog):
    """A changed file is read again; an emptied or removed one keeps the keys that were, and the log says so once."""
    caplog.set_level("WARNING", "ray.serve")
    file = tmp_path / "keys"
    file.write_text("# primary\nold\n\nsecond\n")
    ring = KeyRing(keys_file=file)
    ring.check("Bearer old")
    file.write_text("brand-new\n")
    ring.check("Bearer brand-new")
    with pytest.raises(Unauthorized):
        ring.check("Bearer old")
    assert not caplog.records
    os.truncate(file, 0)
    for _ in range(2):
        ring.check("Bearer brand-new")
    file.unlink()
    ring.check("Bearer brand-new")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("stay valid" in record.message for record in caplog.records)
    assert "brand-new" not in caplog.text


def test_a_source_without_keys_refuses_to_start(tmp_path, monkeypatch):
    """A configured source without keys is refused: it would either reject or accept every request."""
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigurationError, match="NOWHERE"):
        KeyRing(["NOWHERE"])
    monkeypatch.setenv("NOWHERE", "  ")
    with pytest.raises(ConfigurationError, match="NOWHERE"):
        KeyRing(["NOWHERE"])
    empty = tmp_path / "keys"
    empty.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="keys_file"):
        KeyRing(keys_file=empty)


def test_home_folder_in_the_path(tmp_path, monkeypatch):
    """`~` is the home folder of the user that runs the service."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "keys.txt").write_text("first\n")
    KeyRing(keys_file=Path("~/keys.txt")).check("Bearer first")


def test_a_folder_is_not_a_keys_file(tmp_path):
    """As where the folder of a Kubernetes secret is named instead of the file in it."""
    with pytest.raises(ConfigurationError, match=r"cannot be read \(IsADirectoryError\); expected a text file"):
        KeyRing(keys_file=tmp_path)


def test_a_file_of_other_bytes_is_unreadable(tmp_path):
    """Not UTF-8: as if it could not be read. The keys that were stay."""
    file = tmp_path / "keys"
    file.write_bytes(b"first\n")
    keys = KeyRing(keys_file=file)
    file.write_bytes(b"\xff\xfe\n\n")
    keys.check("Bearer first")
    with pytest.raises(ConfigurationError):
        KeyRing(keys_file=file)


@pytest.mark.parametrize("key", ["sch\u00f6n", "voil\u00e0", "\u00c5"])  # two end in bytes that str.strip takes for blanks
def test_keys_beyond_ascii(tmp_path, key):
    """A byte order mark is no part of the first key; a header's bytes arrive as latin-1."""
    file = tmp_path / "keys"
    file.write_text(f"{key}\n", encoding="utf-8-sig")
    KeyRing(keys_file=file).check("Bearer " + key.encode().decode("latin-1"))


def test_callers_have_ids_that_do_not_reveal_keys(monkeypatch):
    """With several keys each has an id that reveals nothing of the key; a single key has none."""
    monkeypatch.setenv("FIRST", "one-long-secret")
    monkeypatch.setenv("SECOND", "another-secret")
    monkeypatch.setenv("AGAIN", "one-long-secret")
    assert KeyRing(["FIRST"]).check("Bearer one-long-secret") == KeyRing(["FIRST", "AGAIN"]).check("Bearer one-long-secret") == ""
    ring = KeyRing(["FIRST", "SECOND"])
    first, second = (ring.check(f"Bearer {key}") for key in ("one-long-secret", "another-secret"))
    assert first == ring.check("bearer one-long-secret")
    assert len({first, second}) == 2
    assert "secret" not in first + second
    assert len(first) == 8


def test_ids_of_a_file_lead_back_to_its_lines(tmp_path, capsys):
    """The command prints the id that metrics show, the line and the comment above; no key, not even one that was commented out."""
    old, first, second = ("0123456789abcdef" * 2, "one-long-secret", "another-secret")
    file = tmp_path / "keys"
    file.write_text(f"# team blue\n{first}\n\n# replaced {old}\n{second}\n", encoding="utf-8-sig")
    ring = KeyRing(keys_file=file)
    blue, other = (ring.check(f"Bearer {key}") for key in (first, second))
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"{blue}  line 2  team blue", f"{other}  line 5  replaced …"]
    assert not any(key in printed for key in (old, first, second))


@pytest.mark.parametrize("content", [None, b"# nothing\n", b"\xff\xfe"], ids=["absent", "no key", "not text"])
def test_a_file_without_keys_is_one_line(tmp_path, capsys, content):
    """One line on stderr that names the file, and exit status 1."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    assert main([str(file)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"{file}: ")
