"""Changes under load: what they edit, and what counts as late; the real thing is `python -m loadtest.update`."""

from types import SimpleNamespace

import pytest
import yaml

from loadtest import update
from loadtest.load.openloop import Query
from loadtest.service.local_service import SHIPPED_CONFIG
from loadtest.update import CHANGES, as_table
from serve_app.config_file import check_config


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_good_configuration(tmp_path, name):
    """It passes the check, and differs from the shipped file."""
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    before = yaml.safe_dump(document)
    CHANGES[name].edit(document["applications"][0], tmp_path)
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(document))
    assert path.read_text() != before
    assert check_config(path)


def test_all_replicas_are_new():
    """A replica of before that still runs, or a deployment without any, and the update is not done."""
    before = {name: {1, 2} for name in update.DEPLOYMENTS}
    pids = {name: [3, 4] for name in update.DEPLOYMENTS}
    service = SimpleNamespace(replica_pids=pids.__getitem__)
    assert update._all_new(service, before, {})
    pids["Detector"] = [2, 4]
    assert not update._all_new(service, before, {})
    pids["Detector"] = []
    assert not update._all_new(service, before, {})


def test_failed_and_late_requests_are_counted(monkeypatch):
    """Failures are not late, and the slowest is of right answers."""
    latencies = [("ok", 0.1), ("ok", 6.0), ("status 500", 20.0)]

    async def queries(*_):
        return [Query(0, 0, seconds, outcome) for outcome, seconds in latencies]

    monkeypatch.setattr(update, "run_open_loop", queries)
    monkeypatch.setattr(update, "_make", lambda *_: [31.0])
    row = update.update(SimpleNamespace(url="http://127.0.0.1:1"), "args (rolling update)", 3, 1)
    assert (row.asked, row.failed, row.late, row.slowest_ms, row.took_s) == (3, 1, 1, pytest.approx(6000), 31.0)
    assert "31.0" in as_table([row])
