"""The playground in headless Chromium, on the real routes with a stub behind them. Skipped where Chromium or Playwright is missing."""

import io
import re
import shutil

import pytest
from PIL import Image

from pipeline.errors import ImageError
from tests.support.page_service import page_service

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMES = "\N{MULTIPLICATION SIGN}"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service():
    with page_service() as (url, ingress):
        yield url, ingress


@pytest.fixture
def page(browser, service):
    """The page, at `/`; at the end nothing was asked of another host and no script failed."""
    url, ingress = service
    ingress.seen.clear()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    page, asked, faults = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None)
    page.goto(url)
    yield page
    context.close()
    assert all(address.startswith(url) for address in asked)
    assert not faults


def photo(kind="PNG", size=(400, 300)):
    data = io.BytesIO()
    Image.new("RGB", size, (40, 90, 160)).save(data, kind)
    return data.getvalue()


def choose(page, data=None, name="photo.png", mime="image/png"):
    page.locator("#file").set_input_files([{"name": name, "mimeType": mime, "buffer": photo() if data is None else data}])


def scored(page):
    choose(page)
    page.wait_for_selector("#result:not([hidden])")
    return page


def text(page, selector):
    return page.locator(selector).inner_text()


def test_a_chosen_photo_is_scored_and_outlined(page, service):
    """The file goes as it is; objects above the default score are listed and drawn."""
    scored(page)
    (images, params, *_), *_ = service[1].seen
    assert images == [photo()]
    assert (params.score_threshold, params.holes) == (0.05, "rings")
    assert text(page, "#count") == f"1 {TIMES} person, 1 {TIMES} dog"
    assert page.locator("#objects button").count() == 2
    pixels = page.evaluate(
        "() => { const c = document.getElementById('canvas'), g = c.getContext('2d');"
        " const at = (x, y) => [...g.getImageData(x * c.width, y * c.height, 1, 1).data].slice(0, 3);"
        " return [at(.02, .02), at(.25, .3), at(.25, .5)]; }"
    )
    plain, inside, hole = pixels
    assert inside != plain
    assert hole == plain


def test_an_example_photo_takes_one_click(page, service):
    """It is one of the shipped ones, and its licence is named."""
    page.locator("#examples button").first.click()
    page.wait_for_selector("#result:not([hidden])")
    assert service[1].seen[0][0][0].startswith(b"\xff\xd8")
    assert "CC BY" in text(page, "#credits")


def test_a_dropped_and_a_pasted_photo_are_scored(page, service):
    """Both ways, the first photo of the event; the page says that it leaves the others out."""
    script = """async ([kind, bytes]) => {
        const data = new DataTransfer();
        for (const name of ["a.png", "b.png", "c.png"]) data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(script, [kind, list(photo())])
        page.wait_for_function("() => !document.getElementById('result').hidden")
        assert len(service[1].seen) == count
        assert text(page, "#left-out").startswith("2 more not sent: ")
        page.evaluate("() => { document.getElementById('result').hidden = true; }")


def slide(page, selector, value):
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); input.dispatchEvent(new Event('change')); }",
        str(value),
    )


def test_filters_act_without_a_request(page, service):
    """Score and labels; points, bytes, JSON and the example code follow."""
    scored(page)
    slide(page, "#threshold", 0.1)
    assert text(page, "#count") == f"2 {TIMES} person, 1 {TIMES} dog"
    page.get_by_role("checkbox", name="dog").uncheck()
    assert text(page, "#count") == f"2 {TIMES} person"
    assert "labels=person" in text(page, "#panel")
    assert "score_threshold=0.1" in text(page, "#panel")
    assert text(page, "#objects li:first-child .points") == "12 points"
    assert re.fullmatch(r"\d+ points, \d\.\d kB of JSON", text(page, "#size"))
    assert len(service[1].seen) == 1


def test_tolerance_asks_again(page, service):
    scored(page)
    slide(page, "#tolerance", 4)
    page.wait_for_function("() => document.getElementById('panel').textContent.includes('polygon_tolerance_px=4')")
    assert service[1].seen[-1][1].polygon_tolerance_px == 4


def test_time_is_shown_by_stage(page):
    """From server-timing; the rest is the way there and back."""
    scored(page)
    shown = text(page, "#timing")
    assert "network" in shown
    assert "14.0 ms" in shown
    assert "HTTP and browser" in shown


def test_the_code_is_ready_to_run(page, tmp_path):
    """Python as it stands prints what is found; the JSON is JSON."""
    import json
    import subprocess
    import sys

    scored(page)
    page.get_by_role("tab", name="Python").click()
    (tmp_path / "photo.png").write_bytes(photo())
    done = subprocess.run([sys.executable, "-c", text(page, "#panel")], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "person 0.92 1 rings"
    page.get_by_role("tab", name="JSON").click()
    assert [box["label"] for box in json.loads(text(page, "#panel"))[0]["boxes"]] == ["person", "dog"]


def test_hover_and_click_single_out_an_object(page):
    """On the photo and in the list alike; a click holds it, a second one lets it go."""
    scored(page)
    box = page.locator("#canvas").bounding_box()
    at = (box["x"] + 0.65 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.move(*at)
    assert page.locator("#objects button.active").inner_text().startswith("dog")
    page.mouse.click(*at)
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert page.locator("#objects button[aria-pressed=true]").inner_text().startswith("dog")
    page.locator("#objects button[aria-pressed=true]").click()
    assert page.locator("#objects button[aria-pressed=true]").count() == 0


def test_the_keyboard_reaches_everything(page):
    """Tab to an example, Enter scores it; arrows move between the tabs; the canvas has a text."""
    page.locator("#examples button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#canvas").get_attribute("aria-label") == f"riders.jpg: 1 {TIMES} person, 1 {TIMES} dog"
    page.get_by_role("tab", name="curl", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="curl, picture").get_attribute("aria-selected") == "true"
    page.locator("#objects button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#objects button").first.get_attribute("aria-pressed") == "true"
    unnamed = page.evaluate("() => [...document.querySelectorAll('button, input')].filter((e) => !e.hidden && !e.labels?.length"
                            " && !e.textContent.trim() && !e.ariaLabel && !e.querySelector('img[alt]')).length")  # fmt: skip
    assert unnamed == 0


def test_an_error_has_code_and_remedy_and_can_be_tried_again(page, service):
    """An alert, as screen readers want it; it goes when the next photo succeeds."""
    service[1].error = ImageError("The image's header is damaged.")
    choose(page)
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#error").get_attribute("role") == "alert"
    assert text(page, "#error-code") == "image_not_decodable"
    assert text(page, "#error-message").startswith("photo.png: The image's header is damaged.")
    assert "save it again as JPEG" in text(page, "#error-remedy")
    page.locator("#retry").click()
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#error").is_hidden()


def test_a_service_that_does_not_answer_is_reported(page):
    page.context.set_offline(True)
    choose(page)
    page.wait_for_selector("#error:not([hidden])")
    assert text(page, "#error-code") == "no_connection"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_scroll_one_way_only(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    scored(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_a_key_is_asked_for_and_kept_in_memory_only(browser, monkeypatch):
    """With it the photo is scored; nothing is stored."""
    monkeypatch.setenv("SCORING_KEY", "right")
    with page_service(auth={"keys_env": ["SCORING_KEY"]}) as (url, _):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#key-form:not([hidden])")
        choose(page)
        page.wait_for_selector("#error:not([hidden])")
        assert text(page, "#error-code") == "unauthorized"
        page.get_by_label("This service needs a key").fill("right")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#result:not([hidden])")
        assert "$SCORING_KEY" in text(page, "#panel")
        assert "right" not in text(page, "#panel")
        assert page.evaluate("() => localStorage.length + sessionStorage.length + document.cookie.length") == 0
        context.close()


def test_a_wrong_key_is_reported_and_any_text_can_be_a_key(browser, monkeypatch):
    """Before a photo is chosen too. The key goes as UTF-8, as from curl: fetch() alone takes no character beyond Latin-1."""
    monkeypatch.setenv("SCORING_KEY", "cl\u00e9-\u043a\u043b\u044e\u0447")
    with page_service(auth={"keys_env": ["SCORING_KEY"]}) as (url, _):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        for wrong in ("wrong", "\u043a\u043b\u044e\u0447"):
            page.get_by_label("This service needs a key").fill(wrong)
            page.keyboard.press("Enter")
            page.wait_for_selector("#error:not([hidden])")
            assert text(page, "#error-code") == "unauthorized"
            assert page.locator("#key-form").is_visible()
            assert page.locator("#retry").is_hidden()  # there is no photo to try again
        page.get_by_label("This service needs a key").fill("cl\u00e9-\u043a\u043b\u044e\u0447")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form", state="hidden")
        assert page.locator("#error").is_hidden()
        choose(page)
        page.wait_for_selector("#result:not([hidden])")
        context.close()


def test_the_photo_chosen_last_is_shown(page):
    """Whatever the one before still brings is dropped: its answer, the picture of a file that the browser cannot decode, an example."""
    held = []
    for held_url, first in (
        ("**/score*draw=1", lambda: choose(page, photo("TIFF"), "first.tif", "image/tiff")),
        ("**/score*", lambda: choose(page, name="first.png")),
        ("**/examples/riders.jpg", lambda: page.locator("#examples button").first.click()),
    ):
        held.clear()
        page.route(held_url, lambda route: route.continue_() if held else held.append(route))
        first()
        while not held:
            page.wait_for_timeout(10)
        choose(page, name="last.png")
        page.wait_for_function("() => canvas.ariaLabel.startsWith('last.png:')")
        held[0].fulfill(body=photo(size=(30, 10)), content_type="image/png")
        page.wait_for_timeout(100)
        page.unroute(held_url)
        assert text(page, "#count") == f"1 {TIMES} person, 1 {TIMES} dog"
        assert page.locator("#canvas").get_attribute("aria-label").startswith("last.png:")
        assert page.locator("#canvas").evaluate("(canvas) => canvas.style.aspectRatio") == "400 / 300"
        assert page.locator("#error").is_hidden()
        assert page.locator("#busy").is_hidden()


def test_a_file_that_cannot_be_read_is_reported(page, tmp_path):
    """Gone, changed, or a folder: fetch() would only say that the connection failed."""
    file = tmp_path / "photo.png"
    file.write_bytes(photo())
    page.locator("#file").set_input_files(file)
    page.wait_for_selector("#result:not([hidden])")
    file.unlink()
    slide(page, "#tolerance", 4)
    page.wait_for_selector("#error:not([hidden])")
    assert text(page, "#error-code") == "file_unreadable"


def test_a_file_of_another_kind_is_sent_as_bytes(page, service):
    """JSON too, which would be a request of its own. After an error the photo before, with its outlines, is not shown any more."""
    scored(page)
    request = b'{"input_data": {"data": ["http://127.0.0.1/"]}}'
    service[1].error = ImageError("The file is not an image.")
    choose(page, request, "request.json", "application/json")
    page.wait_for_selector("#error:not([hidden])")
    assert service[1].seen[-1][0] == [request]
    assert page.locator("#canvas").is_hidden()
    assert page.locator("#welcome").is_visible()


def test_a_service_that_does_not_rotate_photos_draws_them(page):
    """With `image_loader.exif_orientation: false` outlines fit the stored pixels, which browsers rotate."""
    page.route("**/info", lambda route: route.fulfill(json=route.fetch().json() | {"exif_orientation": False}))
    page.route("**/score*draw=1", lambda route: route.fulfill(body=photo(size=(30, 10)), content_type="image/png"))
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    scored(page)
    assert page.locator("#canvas").evaluate("(canvas) => canvas.style.aspectRatio") == "30 / 10"


def test_the_code_finds_what_the_page_shows(page, tmp_path):
    """Also if the objects of all labels that are left are below the score, or no label is left."""
    import subprocess
    import sys

    scored(page)
    (tmp_path / "photo.png").write_bytes(photo())
    slide(page, "#threshold", 0.8)
    page.get_by_role("tab", name="Python").click()
    for label in ("person", "dog"):
        page.get_by_role("checkbox", name=label).uncheck()
        assert text(page, "#count") == "No objects above this score"
        asked = text(page, "#panel")
        assert '"labels": ["dog"]' in asked if label == "person" else '"score_threshold": 1' in asked
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_new_photo_has_all_its_labels_checked(page):
    """As it is shown with all of them, though the photo before had the same labels and one was unchecked."""
    scored(page)
    page.get_by_role("checkbox", name="dog").uncheck()
    choose(page, name="next.png")
    page.wait_for_function("() => canvas.ariaLabel.startsWith('next.png:')")
    assert "dog" in text(page, "#count")
    assert page.get_by_role("checkbox", name="dog").is_checked()


def test_an_object_that_is_filtered_out_dims_no_other(page):
    """It was picked before the filter hid it."""
    scored(page)
    inside = (
        "() => [...document.getElementById('canvas').getContext('2d')"
        ".getImageData(0.15 * canvas.width, 0.45 * canvas.height, 1, 1).data]"
    )
    page.mouse.move(2, 2)
    bright = page.evaluate(inside)
    page.locator("#objects button").last.click()
    page.mouse.move(2, 2)
    assert page.evaluate(inside) != bright
    slide(page, "#threshold", 0.8)
    assert page.evaluate(inside) == bright


@pytest.mark.parametrize("size", [(30, 9000), (9000, 30), (5000, 5000)])
def test_the_canvas_fits_into_browsers(page, size):
    """Firefox draws nothing above 32,767 pixels a side, iOS above 16.7 million pixels; a long screenshot is drawn coarser."""
    choose(page, photo(size=size))
    page.wait_for_selector("#result:not([hidden])")
    width, height = page.evaluate("() => [canvas.width, canvas.height]")
    assert max(width, height) <= 16_384
    assert width * height <= 16_777_216
    assert width >= 1
    assert height >= 1
    inside = "() => canvas.getContext('2d').getImageData(canvas.width * 0.15, canvas.height * 0.45, 1, 1).data[3]"
    assert page.evaluate(inside) == 255


def test_tabs_hold_nothing_but_tabs(page):
    """A screen reader counts them: "1 of 4"."""
    assert page.locator("[role=tablist] > :not([role=tab])").count() == 0


def test_docs_work_without_the_internet(browser, service):
    """The document is shown; every file comes from the service."""
    url, _ = service
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/docs")
    page.wait_for_selector(".opblock-post")
    assert "/score" in text(page, ".opblock-post")
    assert all(address.startswith((url, "data:")) for address in asked)
    context.close()
