"""The demo as a visitor meets it: its own process, over HTTP. Where gradio is missing these tests are skipped."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).parents[2]
START_SECONDS = 120
WHY = "gradio wants pillow<13, so it is tested in an environment of its own: pip install -e '.[demo]' pytest playwright"
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


class Served:
    """A running demo: its address, its temporary folder and what it has written to its log."""

    def __init__(self, folder: Path, *options: str):
        self.log = folder / "log.txt"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        environment = os.environ | {"TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-W", "error::UserWarning", "-m", "llava_mini.cli", "demo", *options]
        with self.log.open("w") as log:
            # Started elsewhere: nothing may depend on the folder.
            self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        self.url = self._wait()

    def _wait(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()):
                return found[0]
            time.sleep(0.2)
        self.process.kill()
        raise AssertionError(f"The demo did not start: {self.log.read_text()[-3000:]}")

    def files(self, kind: str) -> list[Path]:
        """What lies in "uploads" or "views"."""
        return [path for path in self.temporary.glob(f"llava-mini-demo-*/{kind}/**/*") if path.is_file()]

    def stop(self):
        """As a service manager stops it."""
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    pytest.importorskip("gradio", reason=WHY)
    demo = Served(tmp_path_factory.mktemp("demo"), "--max-upload-size", "300kb")
    yield demo
    demo.stop()
    assert not list(demo.temporary.glob("llava-mini-demo-*")), "temporary files are left"
    # Gradio writes of files that nobody uploaded, which a test asks for; of ours nothing may have failed.
    assert "could not be answered" not in demo.log.read_text()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Files that a visitor may send: name to path."""
    from llava_mini.demo.examples import write_examples

    folder = tmp_path_factory.mktemp("pictures")
    paths = {example.path.name: str(example.path) for example in write_examples(folder, str(folder))}
    (folder / "broken.png").write_bytes(Path(paths["shapes.png"]).read_bytes()[:300])
    (folder / "text.mp4").write_text("no clip")
    Image.effect_noise((1200, 1200), 90).convert("RGB").save(folder / "large.png")
    return paths | {name: str(folder / name) for name in ("broken.png", "text.mp4", "large.png")}


@pytest.fixture(scope="module")  # its event loop runs as long as it is open, and other modules' tests need their own
def browser():
    api = pytest.importorskip("playwright.sync_api", reason=f"playwright is missing. {WHY}")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_OPTIONS)
        yield launched
        launched.close()


@pytest.fixture
def screenshots(tmp_path):
    """Where pictures of the page go, to be looked at."""
    folder = Path(os.environ.get("LLAVA_MINI_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
