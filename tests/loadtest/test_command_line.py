"""`python -m loadtest` and what it says when nothing can be measured."""

import asyncio

import pytest

from loadtest import __main__ as main
from tests.loadtest.fake_service import fake_service


@pytest.mark.parametrize("scenario", ["server", "offline"])
async def test_a_wrong_key_is_named(scenario, monkeypatch, capsys):
    """After the warm-up, with its status; no search for a rate."""
    monkeypatch.setattr(main, "WARM_UP_S", 0.1)
    async with fake_service(key="right") as url:
        status = await asyncio.to_thread(main.main, ["run", "--scenario", scenario, "--url", url, "--key", "wrong"])
    assert status == 1
    assert "status 401" in (said := capsys.readouterr().err)
    assert "LOADTEST_KEY" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --scenario server --url 127.0.0.1:8000", "say http:// in front"),
        ("plan --costs costs.json --step-ms 12", "'12' is not BASE,PER_IMAGE"),
        ("plan --costs costs.json --step-ms 12,x", "'12,x' is not BASE,PER_IMAGE"),
        ("plan --costs costs.json --step-ms 0,0", "a step takes time"),
    ],
)
def test_wrong_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main.main(arguments.split())
    assert said in capsys.readouterr().err
