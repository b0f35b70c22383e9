"""The variables of ray.env."""

import os

from serve_app.ray_env import read_ray_env, set_ray_env


def test_leaves_what_the_environment_sets(tmp_path, monkeypatch):
    """So `RAY_SERVE_ENABLE_HA_PROXY=0 make serve` does what it says."""
    (tmp_path / "ray.env").write_text("# comment\nTEST_A=file\n\nTEST_B=file\n#TEST_C=file\n")
    monkeypatch.setattr(os, "environ", {"TEST_A": "mine"})
    set_ray_env(tmp_path / "ray.env")
    assert os.environ == {"TEST_A": "mine", "TEST_B": "file"}


def test_is_read_as_a_shell_reads_it(tmp_path):
    """Quotes hold a value with spaces or newlines together, and are no part of it."""
    path = tmp_path / "ray.env"
    path.write_text('TEST_A="1s and more"  # seconds\nTEST_B=\nTEST_C=\'a=b\'\nTEST_D="1\n  2 # 3" # isn\'t read\nTEST_E=5')
    assert read_ray_env(path) == {"TEST_A": "1s and more", "TEST_B": "", "TEST_C": "a=b", "TEST_D": "1\n  2 # 3", "TEST_E": "5"}


def test_no_file_is_no_fault(tmp_path):
    """Ray's defaults then apply."""
    assert read_ray_env(tmp_path / "ray.env") == {}
