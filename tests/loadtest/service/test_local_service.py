"""A service on this machine: what it says and leaves."""

import tempfile

import pytest

from loadtest.service.local_service import local_service


def test_it_says_that_it_starts_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    """A line of progress before the first wait; a configuration that is missing leaves no folder behind."""
    made = tmp_path / "run"
    made.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(made))
    with pytest.raises(FileNotFoundError), local_service(tmp_path / "missing.yaml"):
        pytest.fail("it started")
    assert capsys.readouterr().err == "starting the service, usually half a minute\n"
    assert not made.exists()
