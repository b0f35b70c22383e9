"""The open door: what counts as one, and that the ingress replica asks the cluster, not the file."""

from types import SimpleNamespace

import pytest

from deployments.settings import AuthSettings, Settings
from pipeline.errors import ConfigurationError
from serve_app.http import exposure
from serve_app.http.exposure import check_certificates, check_exposure, http_app_unless_exposed, is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("my-host", False),
        ("", False),
    ],
)
def test_what_is_loopback(host, loopback):
    """Addresses that only this machine reaches; an empty host means all of them."""
    assert is_loopback(host) is loopback


def test_open_door():
    """Beyond loopback without keys it does not start; with keys, or told to, or unreachable, it does."""
    with pytest.raises(ConfigurationError, match="allow_anonymous"):
        check_exposure("0.0.0.0", AuthSettings())
    check_exposure("0.0.0.0", AuthSettings(keys_env=["KEY"]))
    check_exposure("0.0.0.0", AuthSettings(allow_anonymous=True))
    check_exposure("127.0.0.1", AuthSettings())
    check_exposure(None, AuthSettings())


def test_replica_asks_the_cluster(monkeypatch):
    """The host is the one Ray Serve was started with, whatever the file says."""
    cluster = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", ssl_certfile=None))
    monkeypatch.setattr(exposure, "_get_global_client", lambda: cluster)
    monkeypatch.setattr(exposure.ray, "nodes", lambda: [{"Alive": True}])
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0, beyond loopback"):
        http_app_unless_exposed(SimpleNamespace(refusal=None, errors_counted=None), Settings())
    cluster.http_config.host = "127.0.0.1"
    assert http_app_unless_exposed(SimpleNamespace(refusal=None, errors_counted=None), Settings())


def test_certificates_that_nobody_would_speak(monkeypatch):
    """HAProxy speaks plain HTTP to replicas that speak TLS: every request would be a 500."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    check_certificates(None)
    with pytest.raises(ConfigurationError, match="RAY_SERVE_ENABLE_HA_PROXY=0"):
        check_certificates("/run/tls.crt")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    check_certificates("/run/tls.crt")


@pytest.mark.parametrize(("host", "alive", "warned"), [("127.0.0.1", 2, True), ("127.0.0.1", 1, False), ("0.0.0.0", 2, False)])
def test_loopback_in_a_cluster_is_reported(monkeypatch, caplog, host, alive, warned):
    """Otherwise replicas on other nodes would get no requests, without an error."""
    cluster = SimpleNamespace(http_config=SimpleNamespace(host=host, ssl_certfile=None))
    monkeypatch.setattr(exposure, "_get_global_client", lambda: cluster)
    monkeypatch.setattr(exposure.ray, "nodes", lambda: [{"Alive": n < alive} for n in range(3)])
    with caplog.at_level("WARNING", "ray.serve"):
        http_app_unless_exposed(
            SimpleNamespace(refusal=None, errors_counted=None),
            Settings.model_validate({"ingress": {"auth": {"allow_anonymous": True}}}),
        )
    assert ("a cluster of 2 nodes" in caplog.text) is warned
