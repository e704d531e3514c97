"""`llava-mini serve`: a real server on this machine, asked over HTTP for a converted checkpoint."""

import argparse
import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.import_utils import is_serve_available

from llava_mini.serving import add_serve_parser, serve


needs_server = pytest.mark.skipif(not is_serve_available(), reason="the extra `serve` is not installed")
START_SECONDS = 120
NEW_TOKENS, NUM_FRAMES = 8, 5


def test_options_get_through_to_the_server(monkeypatch):
    seen = []
    monkeypatch.setattr("llava_mini.serving.serve", seen.append)
    parser = argparse.ArgumentParser()
    add_serve_parser(parser.add_subparsers())
    arguments = parser.parse_args(["serve", "checkpoint", "--port", "8001", "--help"])
    arguments.function(arguments)
    assert seen == [["checkpoint", "--port", "8001", "--help"]]


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("llava_mini.serving.is_serve_available", lambda: False)
    with pytest.raises(ImportError, match=r"llava-mini-hf\[serve\]"):
        serve([])


@pytest.fixture(scope="module")
def server(converted):
    """Address and checkpoint of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkpoint = str(converted("standard"))
    program = "import sys; from llava_mini.serving import serve; serve(sys.argv[1:])"
    options = [checkpoint, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-c", program, *options], stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process)
        yield address, checkpoint
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address, process):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    process.kill()
    pytest.fail(f"The server did not start: {process.stderr.read()[-2000:]}")


def data_url(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def video_url(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(NUM_FRAMES):
            frame = np.full((48, 64, 3), 40 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def ask(server, content, **options):
    address, checkpoint = server
    messages = [{"role": "user", "content": content}]
    body = {"model": checkpoint, "messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        data=json.dumps(body | options).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def image_question(seed=0):
    return [{"type": "image_url", "image_url": {"url": data_url(seed)}}, {"type": "text", "text": "What is this?"}]


def expected_answer(checkpoint, content):
    """What the model says without a server."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    content = [{"type": "image", "url": content[0]["image_url"]["url"]}, content[1]]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@needs_server
@pytest.mark.slow
def test_image_question(server):
    answers = [json.loads(ask(server, image_question(seed))) for seed in (0, 1)]
    for seed, answer in enumerate(answers):
        assert answer["choices"][0]["message"]["content"] == expected_answer(server[1], image_question(seed))
        assert answer["usage"]["completion_tokens"] == NEW_TOKENS


@needs_server
@pytest.mark.slow
def test_streamed_answer_is_the_same(server):
    whole = json.loads(ask(server, image_question()))["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in ask(server, image_question(), stream=True).splitlines() if line]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    parts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert len([part for part in parts if part]) > 1 and "".join(parts) == whole


@needs_server
@pytest.mark.slow
def test_video_question(server, tmp_path):
    content = [{"type": "video_url", "video_url": {"url": video_url(tmp_path / "clip.mp4")}}]
    answer = json.loads(ask(server, [*content, {"type": "text", "text": "What happens?"}]))
    assert answer["choices"][0]["message"]["content"]
    # A token for each of the clip's frames (the server asks for 32, and there are fewer), besides the words.
    words = json.loads(ask(server, "What happens?"))["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] >= words + NUM_FRAMES


@needs_server
@pytest.mark.slow
def test_an_image_that_is_none(server):
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server, content)
    assert error.value.code >= 400
