"""What browsers get: pages and their files, from this service alone; that they work, test_playground.py shows in a browser."""

import re
from pathlib import Path

import pytest

from deployments.settings import Settings
from serve_app.http import pages
from tests.support.fake_ingress import FakeIngress, client_for

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PLAYGROUND = Path(pages.__file__).parents[1] / "playground"
DOCS = Path(pages.__file__).parents[1] / "docs"


@pytest.fixture
async def client(monkeypatch):
    monkeypatch.setenv("SCORING_KEY", "right")
    settings = Settings.model_validate({"ingress": {"auth": {"keys_env": ["SCORING_KEY"]}}})
    async with client_for(FakeIngress(), settings) as client:
        yield client


async def test_a_browser_gets_the_page_and_a_probe_gets_healthy(client):
    """At the same address, without a key; caches are told that it depends on Accept."""
    page, probe = await client.get("/", headers=BROWSER), await client.get("/", headers={"accept": "*/*"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>RTMDet-Ins playground" in page.text
    assert probe.text == "Healthy"
    assert "accept" in page.headers["vary"]
    assert "accept" in probe.headers["vary"]
    assert (await client.get("/playground")).content == page.content
    assert (await client.head("/", headers=BROWSER)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/playground", "/docs"])
async def test_everything_that_a_page_names_is_there(client, path):
    """Without a key; nothing of another host, no inline script or style; the policy forbids both."""
    page = await client.get(path, headers=BROWSER)
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert named
    for name in named:
        assert not re.match(r"\w+:|//|/", name), name
        answer = await client.get(f"/{name}")
        assert answer.status_code == 200, name
        if name != "openapi.json":
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<style" not in page.text
    assert not re.findall(r"<script[^>]*>[^<]", page.text)
    assert not re.findall(r"\s(?:on\w+|style)=", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "script-src" not in page.headers["content-security-policy"]


@pytest.mark.parametrize("site", ["playground", "docs"])
async def test_a_slash_at_the_end_leads_to_the_page(client, site):
    """By a relative address, which no Host header can turn elsewhere; it also holds below a route prefix."""
    answer = await client.get(f"/{site}/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (308, f"../{site}")
    assert answer.next_request.url.path == f"/{site}"


def test_the_playground_is_small():
    """60 kB without its example photos."""
    assert sum(path.stat().st_size for path in PLAYGROUND.glob("*.*")) <= 60_000


def test_scripts_name_files_that_are_there():
    """Imports and the example photos, which have their licence beside them."""
    scripts = "\n".join(path.read_text() for path in PLAYGROUND.glob("*.js"))
    for name in re.findall(r'from "\./([\w.]+)"', scripts):
        assert (PLAYGROUND / name).is_file()
    licences = (PLAYGROUND / "examples/LICENCES").read_text()
    photos = re.findall(r'file: "([\w.]+)"', scripts)
    assert photos
    for photo in photos:
        assert (PLAYGROUND / "examples" / photo).is_file()
        assert photo in licences


async def test_scripts_have_the_type_that_browsers_want(client):
    answer = await client.get("/playground/app.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("known", ["{}", "W/{}", '"older", W/{}'])
async def test_an_unchanged_file_is_not_sent_again(client, known):
    """Also where a browser knows several, or one that a proxy has compressed."""
    first = await client.get("/playground/app.js")
    again = await client.get("/playground/app.js", headers={"if-none-match": known.format(first.headers["etag"])})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_compressed_file_reaches_those_who_cannot_decompress(client):
    """Swagger UI is kept compressed, a quarter of its size."""
    packed = await client.get("/docs/swagger-ui-bundle.js")
    plain = await client.get("/docs/swagger-ui-bundle.js", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content


@pytest.mark.parametrize(
    "path", ["/playground/none.js", "/playground/%2e%2e/keys.py", "/docs/%2e%2e/keys.py", "/docs/swagger-ui.css.gz"]
)
async def test_no_other_file_is_given_out(client, path):
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_licences_lie_beside_what_is_not_ours():
    assert "Apache License" in (DOCS / "LICENSE").read_text()
    assert (DOCS / "NOTICE").is_file()
