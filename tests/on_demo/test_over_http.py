"""What programs and strangers can do with the demo's addresses."""

import concurrent.futures
import json
import time
from pathlib import Path

import httpx
import pytest


gradio_client = pytest.importorskip("gradio_client", reason="comes with gradio, which wants pillow<13")
ROOT = Path(__file__).parents[2]
SETTINGS = (0.0, 1.0, 16, "", True)


@pytest.fixture
def client(served):
    made = gradio_client.Client(served.url, verbose=False)
    yield made
    made.close()


def ask(client, text, *files, settings=SETTINGS):
    message = {"text": text, "files": [gradio_client.handle_file(file) for file in files]}
    return client.predict(message, *settings, api_name="/chat")[0]


def test_a_program_asks_and_asks_on(client, pictures):
    answer, figures = ask(client, "What colour is the circle?", pictures["shapes.png"])
    assert answer["content"] == "red"
    assert figures["metadata"]["title"].startswith("1 vision token (LLaVA-1.5: 36) · 150 MFLOPs")
    answer, figures = ask(client, "What colour is the background?", settings=(*SETTINGS[:4], False))
    assert answer["content"] == "white" and "from what was kept" in figures["metadata"]["title"]


def test_answers_are_streamed(client, pictures):
    message = {"text": "Describe the picture.", "files": [gradio_client.handle_file(pictures["shapes.png"])]}
    job = client.submit(message, *SETTINGS, api_name="/chat")
    job.result(timeout=60)
    texts = [output[0][0]["content"] for output in job.outputs()]
    assert len(set(texts)) > 5 and texts[-1] == "a large red circle and a small blue square on a white background"
    assert all(texts[-1].startswith(text) for text in texts)


@pytest.mark.parametrize(
    ("name", "told"), [("broken.png", "File 1 (broken.png) is damaged"), ("text.mp4", "File 1 (text.mp4): The video")]
)
def test_a_bad_upload_is_a_message_and_the_server_lives(client, pictures, name, told):
    (refusal,) = ask(client, "What is this?", pictures[name])
    assert refusal["content"].startswith(told) and refusal["metadata"]["title"] == "Not answered"
    assert ask(client, "Which digit is this?", pictures["digit.png"])[0]["content"] == "7"


def test_uploads_and_prompts_have_limits(client, served, pictures):
    with Path(pictures["large.png"]).open("rb") as file:
        response = httpx.post(f"{served.url}/gradio_api/upload", files={"files": file})
    assert response.status_code == 413
    (refusal,) = ask(client, "x" * 3000, pictures["digit.png"])
    assert "3000 characters, and 2000 are allowed" in refusal["content"]


def test_two_visitors_at_once(served, pictures):
    """Each gets answers about their own picture, again and again, though their questions are the same."""

    def visit(name):
        client = gradio_client.Client(served.url, verbose=False)
        answers = [ask(client, "What colour is the background?", pictures[name])]
        answers += [ask(client, "What colour is the background?") for _ in range(3)]
        client.close()
        return [answer["content"] for answer, _ in answers]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(visit, ["shapes.png", "night.png"])) == [["white"] * 4, ["black"] * 4]


def test_only_what_was_uploaded_can_be_fetched(client, served, pictures):
    ask(client, "What colour is the circle?", pictures["shapes.png"])
    uploaded, shown = served.files("uploads"), served.files("views")
    assert uploaded and shown
    for path in (uploaded[0], shown[0]):
        assert httpx.get(f"{served.url}/gradio_api/file={path}").status_code == 200
    root = next(served.temporary.glob("llava-mini-demo-*"))
    inside = ROOT / "examples/tiny/checkpoint/config.json"
    for path in (
        "/etc/passwd", inside, root, root.parent, f"{root}/uploads/../../../log.txt", served.log, "/proc/self/environ",
        f"{root}/uploads/%2e%2e/%2e%2e/%2e%2e/log.txt", ".gradio", "log.txt", f"file://{inside}",
    ):  # fmt: skip
        response = httpx.get(f"{served.url}/gradio_api/file={path}")
        assert response.status_code in (403, 404), f"{path}: {response.status_code}"
    # Nor can a message name a file that was not uploaded.
    message = {"text": "?", "files": [{"path": str(inside), "meta": {"_type": "gradio.FileData"}}]}
    with pytest.raises(Exception, match="."):
        client.predict(message, *SETTINGS, api_name="/chat")


def test_nothing_says_where_the_server_keeps_its_files(client, served, pictures):
    pages = [httpx.get(served.url + path).text for path in ("/", "/config", "/gradio_api/info", "/nowhere")]
    pages += [json.dumps(ask(client, "?", pictures[name])) for name in ("broken.png", "text.mp4")]
    for page in pages:
        for secret in (str(ROOT), str(Path.home()) + "/", "site-packages", "tiny/checkpoint", str(served.log)):
            assert secret not in page, secret
    assert httpx.get(f"{served.url}/monitoring").status_code != 200


def test_nobody_passes_the_queue(served):
    config = httpx.get(f"{served.url}/config").json()
    (chat,) = (part["id"] for part in config["dependencies"] if part["api_name"] == "chat")
    response = httpx.post(f"{served.url}/gradio_api/run/predict", json={"data": [], "fn_index": chat})
    assert response.status_code in (403, 404, 422)


def test_files_go_with_the_visitor(served, pictures):
    before = set(served.files("uploads")) | set(served.files("views"))
    client = gradio_client.Client(served.url, verbose=False)
    own = {"text": "Which digit is this?", "files": [gradio_client.handle_file(pictures["digit.png"])]}
    client.predict(own, *SETTINGS, api_name="/chat")
    assert set(served.files("uploads") + served.files("views")) - before
    client.close()
    end = time.monotonic() + 40
    while (left := set(served.files("uploads") + served.files("views")) - before) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left
