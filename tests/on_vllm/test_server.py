"""`llava-mini serve --engine vllm`: a real server, asked with OpenAI's client."""

import pytest


pytest.importorskip("vllm.engine", reason="vLLM is not installed")

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import av
import numpy as np
import openai
from asking import QUESTIONS, expected, image_url, make_chats, picture, user


START_SECONDS = 240
NAME = "mini"


@pytest.fixture(scope="module")
def client(checkpoints):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--engine", "vllm", "--port", str(port), "--served-model-name", NAME, "--enforce-eager"]
    options += ["--dtype", "float32"]  # by default vLLM makes a float32 checkpoint bfloat16
    command = [sys.executable, "-m", "llava_mini.cli", "serve", str(checkpoints("tiny")), *options]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = open(os.devnull, "wb")  # noqa: SIM115 (closed with the process)
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(address, process):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"The server did not start: exit code {process.poll()}.")


def answer(client, messages, **options):
    options = {"max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(model=NAME, messages=messages, **options)


@pytest.fixture(scope="module")
def right(checkpoints):
    """Chats, and the answers of transformers."""
    from llava_mini import LlavaMiniProcessor

    processor = LlavaMiniProcessor.from_pretrained(checkpoints("tiny"))
    texts = [processor.decode(ids, skip_special_tokens=True) for _, ids in expected(checkpoints("tiny"))]
    return list(zip(make_chats(), texts))


def test_all_questions_one_after_the_other(client, right):
    assert [answer(client, chat).choices[0].message.content for chat, _ in right] == [text for _, text in right]


def test_streaming(client, right):
    for chat, text in (right[0], right[25]):
        pieces = [chunk.choices[0].delta.content or "" for chunk in answer(client, chat, stream=True)]
        assert "".join(pieces) == text
        assert len([piece for piece in pieces if piece]) > 0


def test_sixteen_at_once_get_their_own_answers(client, right):
    asked = right[:10] + right[-6:]
    assert len(asked) == 16
    assert len({text for _, text in asked}) > 3
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda pair: answer(client, pair[0]).choices[0].message.content, asked))
    assert answers == [text for _, text in asked]


def part(kind, url):
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def data_url(content, kind="image/png"):
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def cut_picture():
    content = base64.b64decode(image_url(0).partition(",")[2])
    return data_url(content[: len(content) // 2])


def long_video():
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(600):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8))))
        container.mux(stream.encode())
    return data_url(file.getvalue(), "video/mp4")


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
REFUSED = {
    "seventeen pictures": lambda: [user(*[("image", 0)] * 17, "Which?")],
    "too many words": lambda: [user(("image", 0), "word " * 600)],
    "no picture": lambda: [{"role": "user", "content": [part("image", data_url(b"\x89PNG\r\n\x1a\n")), *words()]}],
    "half a picture": lambda: [{"role": "user", "content": [part("image", cut_picture()), *words()]}],
    "no video": lambda: [{"role": "user", "content": [part("video", data_url(b"ftyp" * 9, "video/mp4")), *words()]}],
    "a playlist": lambda: [{"role": "user", "content": [part("video", data_url(PLAYLIST, "video/mp4")), *words()]}],
    "ten minutes of video": lambda: [{"role": "user", "content": [part("video", long_video()), *words()]}],
    "a local file": lambda: [{"role": "user", "content": [part("image", "file:///etc/hostname"), *words()]}],
    "a private address": lambda: [{"role": "user", "content": [part("image", "http://127.0.0.1/x.png"), *words()]}],
    "not in base64": lambda: [{"role": "user", "content": [part("image", "data:image/png,abc"), *words()]}],
    "another picture's name": lambda: [{"role": "user", "content": [part("image", None) | {"uuid": "a"}, *words()]}],
}


def words():
    return [{"type": "text", "text": QUESTIONS[0]}]


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_and_the_server_lives(client, right, case):
    with pytest.raises(openai.APIStatusError) as raised:
        answer(client, REFUSED[case]())
    assert 400 <= raised.value.status_code < 500, raised.value
    chat, text = right[0]
    assert answer(client, chat).choices[0].message.content == text


@pytest.mark.parametrize("prompt", ["user:<image>\nWhat?", [1, 3, 5]], ids=["words", "ids"])
def test_placeholders_without_pictures_are_refused(client, prompt):
    with pytest.raises(openai.BadRequestError, match="no images were sent"):
        client.completions.create(model=NAME, prompt=prompt, max_tokens=4)


def test_frames_as_jpeg_files(client):
    """vLLM's other way to send a video: its frames, one after the other."""
    file = BytesIO()
    picture(0).save(file, "JPEG")
    frame = base64.b64encode(file.getvalue()).decode()
    content = [part("video", f"data:video/jpeg;base64,{frame},{frame}"), *words()]
    found = answer(client, [{"role": "user", "content": content}])
    one = answer(client, [{"role": "user", "content": [part("video", f"data:video/jpeg;base64,{frame}"), *words()]}])
    assert found.usage.prompt_tokens == one.usage.prompt_tokens + 1


def test_one_name_for_two_pictures_is_no_cache_hit(client, right):
    """What a request calls its pictures (`uuid`) must not bring another request's picture back."""
    found = []
    for seed in range(4):
        chat = [user(("image", seed), QUESTIONS[0])]
        chat[0]["content"][0]["uuid"] = "same"
        found.append(answer(client, chat).choices[0].message.content)
    assert found == [text for _, text in right[:4]]
    assert len(set(found)) > 1
