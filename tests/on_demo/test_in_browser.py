"""The page in Debian's Chromium, as a visitor uses it. The pictures of it are there to be looked at."""

import re
import time
from pathlib import Path

import pytest


SIZE = {"width": 1320, "height": 1010}
README_PICTURE = Path(__file__).parents[2] / "examples" / "demo.png"
MAX_PICTURE_BYTES = 200_000


class Visitor:
    """One open page."""

    def __init__(self, browser, url: str):
        self.page = browser.new_page(viewport=SIZE)
        self.page.set_default_timeout(30_000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.question.wait_for()

    @property
    def question(self):
        return self.page.locator("#question textarea")

    @property
    def answers(self):
        return self.page.locator("#chat [data-testid=bot] .message-content:not(.thought-group *)")

    @property
    def headlines(self):
        return self.page.locator("#chat .thought-group .title, #chat .thought-group button")

    def upload(self, *paths: str):
        self.page.locator("#pictures input[type=file]").first.set_input_files(list(paths))
        self.page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()

    def attach(self, *paths: str):
        self.page.locator("#question input[type=file]").first.set_input_files(list(paths))
        self.page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()

    def ask(self, text: str | None = None):
        count = self.page.locator("#chat .thought-group").count()
        if text is not None:
            self.question.fill(text)
        self.question.press("Enter")
        self.page.locator("#chat .thought-group").nth(count).wait_for()
        self.wait_until_ready()

    def wait_until_ready(self):
        """The answer is whole, and the next question can be written."""
        self.page.locator("#question textarea:enabled").wait_for()
        self.page.wait_for_function("() => !document.querySelector('.generating, .pending, .eta-bar')")

    def text(self) -> str:
        """All that the chat shows."""
        return self.page.locator("#chat").inner_text()

    def seen(self) -> list[str]:
        """The slider's two pictures."""
        self.page.locator("#seen img").nth(1).wait_for()
        return [image.get_attribute("src") for image in self.page.locator("#seen img").all()]


@pytest.fixture
def visitor(browser, served):
    made = Visitor(browser, served.url)
    yield made
    made.page.close()
    assert made.errors == []
    assert all(url.startswith((served.url, "data:", "blob:")) for url in made.requests), "the page calls others"


def test_upload_ask_and_follow_up(visitor, pictures, screenshots):
    visitor.upload(pictures["shapes.png"])
    visitor.ask("What colour is the circle?")
    assert re.search(r"red\s+1 vision token \(LLaVA-1.5: 36\) · 150 MFLOPs .*first token after \d+ ms", visitor.text())
    first = visitor.seen()
    visitor.ask("Which shape is blue?")
    assert re.search(r"square\s+1 vision token .* from what was kept", visitor.text())
    assert len(set(first + visitor.seen())) == 4
    visitor.page.screenshot(path=screenshots / "follow_up.png")


def test_the_page_shows_what_a_word_read(visitor, screenshots):
    """Begins as a visitor who has nothing at hand; its last picture is the README's."""
    visitor.page.screenshot(path=screenshots / "empty.png")
    visitor.page.get_by_text("Where is the pizza, left or right?").first.click()
    visitor.page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()
    visitor.ask()
    before = visitor.seen()
    visitor.ask("Is there a pizza?")
    visitor.page.get_by_label("Looked at by").click()
    visitor.page.get_by_role("option", name="“pizza”").click()
    visitor.page.wait_for_function("old => !old.includes(document.querySelectorAll('#seen img')[1].src)", arg=before)
    time.sleep(1)
    visitor.page.screenshot(path=screenshots / "demo.png")
    assert re.search(r"right\s+1 vision token.*yes\s+1 vision token", visitor.text(), re.DOTALL)
    assert (screenshots / "demo.png").stat().st_size < MAX_PICTURE_BYTES
    assert README_PICTURE.stat().st_size < MAX_PICTURE_BYTES


def test_a_clip(visitor, pictures, screenshots):
    visitor.attach(pictures["clip.mp4"])
    visitor.ask("Which way does the shape move?")
    assert re.search(r"right\s+4 vision tokens \(LLaVA-1.5: 144\)", visitor.text())
    visitor.seen()
    visitor.page.get_by_label("Picture or frame").click()
    visitor.page.get_by_role("option", name="4 of 4").click()
    time.sleep(1)
    visitor.page.screenshot(path=screenshots / "clip.png")


def test_a_broken_file_is_a_message(visitor, pictures, screenshots):
    visitor.attach(pictures["broken.png"])
    visitor.ask("What is this?")
    assert "Not answered" in visitor.text() and "File 1 (broken.png) is damaged" in visitor.text()
    visitor.page.screenshot(path=screenshots / "broken.png")
    visitor.attach(pictures["digit.png"])
    visitor.ask("Which digit is this?")
    assert re.search(r"7\s+1 vision token", visitor.text())


def test_regenerate_and_clear(visitor, pictures, screenshots):
    visitor.upload(pictures["shapes.png"])
    visitor.ask("What colour is the circle?")
    visitor.page.locator("#chat [aria-label=Retry]").click()
    visitor.page.get_by_text("from what was kept").first.wait_for()
    visitor.wait_until_ready()
    assert visitor.text().count("What colour is the circle?") == 1
    visitor.page.locator("#chat").get_by_label("Clear").click()
    visitor.page.screenshot(path=screenshots / "cleared.png")
    visitor.page.get_by_text("Ask about a picture or a clip").wait_for()
    assert visitor.page.locator("#seen img").count() == 0


def test_two_visitors_see_their_own(browser, served, visitor, pictures, screenshots):
    other = Visitor(browser, served.url)
    visitor.upload(pictures["shapes.png"])
    other.upload(pictures["night.png"])
    for one in (visitor, other):
        one.question.fill("What colour is the background?")
    for one in (visitor, other):
        one.question.press("Enter")
    for one in (visitor, other):
        one.page.locator("#chat .thought-group").first.wait_for()
    assert re.search(r"white\s+1 vision token", visitor.text()) and "black" not in visitor.text()
    assert re.search(r"black\s+1 vision token", other.text()) and "white" not in other.text()
    assert not set(visitor.seen()) & set(other.seen())
    uploads = [set(re.findall(r"uploads/\w+", one.page.content())) for one in (visitor, other)]
    assert all(uploads) and not uploads[0] & uploads[1]
    own = set(served.files("views"))
    other.page.screenshot(path=screenshots / "other_visitor.png")
    other.page.close()
    end = time.monotonic() + 40
    while set(served.files("views")) == own and time.monotonic() < end:
        time.sleep(0.3)
    assert set(served.files("views")) < own
    visitor.ask("Is there a red circle?")
    assert re.search(r"yes\s+1 vision token .* from what was kept", visitor.text())
