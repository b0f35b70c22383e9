"""A service on this machine: what it says and leaves."""

import tempfile

import pytest

from loadtest.service.local_service import REPOSITORY, _write_config, local_service
from serve_app.config_file import check_config


def test_it_says_that_it_starts_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    """A line of progress before the first wait; a configuration that is missing leaves no folder behind."""
    made = tmp_path / "run"
    made.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(made))
    with pytest.raises(FileNotFoundError), local_service(tmp_path / "missing.yaml"):
        pytest.fail("it started")
    assert capsys.readouterr().err == "starting the service, usually half a minute\n"
    assert not made.exists()


@pytest.mark.parametrize("namespaces", [False, True])
def test_it_has_no_keys(tmp_path, namespaces):
    """The load is sent without a key, and the file that holds them may be of another machine."""
    path = _write_config(REPOSITORY / "serve_config.gpu.yaml", None, 8123, tmp_path, head_only=False, namespaces=namespaces)
    (settings,) = check_config(path)
    assert settings.ingress.auth.keys_file is None
