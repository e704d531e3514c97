"""`llava-mini serve`: a real server on this machine, asked over HTTP for the small model, kindly and not."""

import argparse
import asyncio
import base64
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.import_utils import is_serve_available

from llava_mini.serving import add_serve_parser, serve


needs_server = pytest.mark.skipif(not is_serve_available(), reason="the extra `serve` is not installed")
CHECKPOINT = str(Path(__file__).parents[1] / "examples/tiny/checkpoint")
START_SECONDS = 120
NEW_TOKENS, NUM_FRAMES = 8, 5
KEY = "a key"
# The server's limits here, below their defaults, so that little is needed to go beyond them.
MAX_BODY_MIB, MAX_IMAGES, MAX_PIXELS, MAX_FRAMES, MAX_NEW_TOKENS = 1, 3, 100_000, 10, 450
BODY_SECONDS = 5
NUM_POSITIONS, END_ID = 512, 2


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


# The running server.


class Server:
    def __init__(self, port, process):
        self.port, self.process = port, process

    def send(self, method, path, body=None, **headers):
        """Status, headers and body of one request."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
        headers = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def post(self, body, **headers):
        """Status and JSON of a chat request."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, content = self.send("POST", "/v1/chat/completions", body, **headers)
        return status, json.loads(content)

    def text(self, content, **options):
        status, answer = self.post(question(content, **options))
        assert status == 200, answer
        return answer["choices"][0]["message"]["content"]

    def refusal(self, body, status=400, **headers):
        """The error of a request that has to be refused, in OpenAI's shape."""
        got, answer = self.post(body, **headers)
        assert got == status, answer
        assert answer.keys() == {"error"} and answer["error"].keys() == {"message", "type", "param", "code"}
        return answer["error"]

    def memory(self):
        """MiB that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    (folder / "red.png").write_bytes(png("red"))
    (folder.parent / "outside.png").write_bytes(png("red"))
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    options = ["--host", "127.0.0.1", "--device", "cpu", "--log-level", "error", "--api-key", KEY]
    options += ["--max-body-mib", MAX_BODY_MIB, "--max-images", MAX_IMAGES, "--max-pixels", MAX_PIXELS]
    options += ["--max-video-frames", MAX_FRAMES, "--max-new-tokens", MAX_NEW_TOKENS, "--body-timeout", BODY_SECONDS]
    options += ["--allowed-media-domains", "localhost,127.0.0.1", "--allowed-local-media-path", folder]
    with run_server(*options) as running:
        running.folder = folder
        yield running


@contextlib.contextmanager
def run_server(*options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from llava_mini.serving import serve; serve(sys.argv[1:])"
    arguments = [sys.executable, "-c", program, CHECKPOINT, "--port", str(port), *map(str, options)]
    # One core for the model, so that it does not depend on what else the machine does.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    # Read all the time, since a full pipe would stop the server.
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    running = Server(port, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up(running):
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail(f"The server did not start: {''.join(log)[-2000:]}")
            time.sleep(0.2)
        yield running
        assert "Traceback" not in "".join(log)
    finally:
        process.kill()
        process.wait(timeout=30)


def is_up(server):
    try:
        return server.send("GET", "/health")[0] == 200
    except OSError:
        return False


def png(colour="red", size=(84, 84), image_format="PNG"):
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, image_format)
    return file.getvalue()


def bomb():
    """20 KB that become 169 million pixels."""
    file = BytesIO()
    Image.new("1", (13000, 13000)).save(file, "PNG")
    return file.getvalue()


def image_part(content=None):
    content = png() if content is None else content
    return url_part("data:image/png;base64," + base64.b64encode(content).decode())


def url_part(url, kind="image_url"):
    return {"type": kind, kind: {"url": url}}


def video_part(num_frames=NUM_FRAMES, container_format="mp4"):
    file = BytesIO()
    with av.open(file, "w", container_format) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = np.full((48, 64, 3), 255 * i // num_frames, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return url_part("data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode(), "video_url")


def question(content="Is there a red circle?", **options):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": NEW_TOKENS, "temperature": 0}
    return body | options


def image_question(colour="red"):
    return [image_part(png(colour)), {"type": "text", "text": "What colour is the background?"}]


def endless(num_tokens=MAX_NEW_TOKENS, **options):
    """A question whose answer is so long, since it must not end."""
    return question(max_tokens=num_tokens, logit_bias={str(END_ID): -100}, **options)


@pytest.fixture(scope="module")
def without_server():
    """What the model says to a content without a server."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)

    def ask(content):
        names = {"image_url": "image", "video_url": "video"}
        parts = [
            {"type": names[part["type"]], "url": part[part["type"]]["url"]} if part["type"] in names else part
            for part in content
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"num_frames": 32} if parts[0]["type"] == "video" else {}),
        )
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        prompt_length = inputs["input_ids"].shape[1]
        return processor.decode(ids[0, prompt_length:], skip_special_tokens=True), prompt_length

    return ask


# Good requests.


@needs_server
@pytest.mark.parametrize("kind", ["red", "blue", "video"])
def test_the_openai_client_gets_the_models_answer(server, without_server, kind):
    openai = pytest.importorskip("openai")
    content = [video_part(), {"type": "text", "text": "What happens?"}] if kind == "video" else image_question(kind)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0)
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == CHECKPOINT
    options = {"model": model.id, "messages": question(content)["messages"], "temperature": 0, "max_tokens": NEW_TOKENS}
    whole = client.chat.completions.create(**options)
    text, prompt_length = without_server(content)
    assert (whole.choices[0].message.content, whole.usage.prompt_tokens) == (text, prompt_length)

    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(parts) == text and chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    with pytest.raises(openai.BadRequestError, match="role"):
        client.chat.completions.create(model=model.id, messages=[{"role": "wizard", "content": "Hm?"}])


@needs_server
def test_a_stop_ends_the_answer_before_it_whole_and_streamed(server):
    full = server.post(endless(24))[1]["choices"][0]
    text = full["message"]["content"]
    assert full["finish_reason"] == "length" and len(text) > 12
    # In the middle of the text, so that it begins and ends within tokens.
    stop = text[5:9]
    expected = text[: text.index(stop)]
    status, answer = server.post(endless(24, stop=["never said", stop]))
    assert status == 200 and answer["choices"][0]["message"]["content"] == expected
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 24
    status, _, events = server.send(
        "POST", "/v1/chat/completions", json.dumps(endless(24, stop=stop, stream=True)).encode()
    )
    events = [line.removeprefix("data: ") for line in events.decode().splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == expected


@needs_server
def test_sampling_is_the_requests_own(server):
    options = {"temperature": 2, "max_tokens": 24, "logit_bias": {str(END_ID): -100}}
    answers = [server.text("What is it?", **options, seed=seed) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    assert server.text("What is it?", logit_bias={"9": 100}, max_tokens=3) != server.text("What is it?", max_tokens=3)


@needs_server
def test_thirty_at_once_get_each_their_own_answer_and_slow_senders_harm_nobody(server):
    colours = [random.Random(i).choice(["red", "green", "blue", "white"]) for i in range(30)]
    alone = {colour: server.text(image_question(colour)) for colour in set(colours)}
    assert len(set(alone.values())) > 1
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head = f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(30) as pool:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(50)]
        for connection in slow:
            connection.sendall(head)
        assert list(pool.map(lambda colour: server.text(image_question(colour)), colours)) == [
            alone[colour] for colour in colours
        ]
        slow[0].settimeout(BODY_SECONDS + 10)
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")


@needs_server
def test_three_hundred_requests_add_no_memory(server):
    body = json.dumps(question(image_question(), max_tokens=1)).encode()
    with ThreadPoolExecutor(4) as pool:
        # The allocator's arenas, one a thread, fill first.
        list(pool.map(server.post, [body] * 50))
        before = server.memory()
        assert {status for status, _ in pool.map(server.post, [body] * 300)} == {200}
    # Bodies alone would be 4 kB each and pixels 85 kB: 25 MiB.
    assert server.memory() - before < 10


@needs_server
@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_connection_ends_its_generation(server, stream):
    start = time.monotonic()
    server.post(endless())
    one = time.monotonic() - start
    body = json.dumps(endless(stream=stream)).encode()
    connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(8)]
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for connection in connections:
        connection.request("POST", "/v1/chat/completions", body, headers)
    time.sleep(0.2)
    for connection in connections:
        connection.close()
    start = time.monotonic()
    server.text("Is there a red circle?")
    # Eight whole generations otherwise.
    assert time.monotonic() - start < max(one, 1)


# Refused requests.


@needs_server
@pytest.mark.parametrize(
    ("content", "options", "status", "limit"),
    [
        ([image_part()] * (MAX_IMAGES + 1), {}, 400, "--max-images"),
        ([image_part(bomb())], {}, 400, "--max-pixels"),
        ([image_part(png(size=(200, 200)))] * 3, {}, 400, "--max-pixels"),
        ([video_part(MAX_FRAMES + 1)], {}, 400, "--max-video-frames"),
        ([video_part(MAX_FRAMES - 1)] * 2, {}, 400, "--max-video-frames"),
        ("circle " * 40_000, {}, 400, "--max-prompt-tokens"),
        ("a b " * 300, {}, 400, "--max-prompt-tokens"),
        ("Hm?", {"max_tokens": MAX_NEW_TOKENS + 1}, 400, "--max-new-tokens"),
        ("a " * 200, {"max_tokens": 400}, 400, f"{NUM_POSITIONS} positions"),
        ("x" * (MAX_BODY_MIB * 2**20), {}, 413, "--max-body-mib"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else None,
)
def test_beyond_a_limit(server, content, options, status, limit):
    start = time.monotonic()
    assert limit in server.refusal(question(content, **options), status)["message"]
    # Decoding four times 13,000 by 13,000 pixels takes longer, and 7.5 GB.
    assert time.monotonic() - start < 5
    assert server.memory() < 2000


@needs_server
def test_at_the_limits(server):
    server.text([*[image_part(png(size=(182, 182)))] * 3, {"type": "text", "text": "?"}])
    server.text([video_part(MAX_FRAMES), {"type": "text", "text": "?"}])
    answer = server.post(endless())[1]
    assert answer["usage"]["completion_tokens"] == MAX_NEW_TOKENS
    # Unless a request says more, its answer may fill what the positions leave.
    server.text("a " * 200, max_tokens=None)


@needs_server
def test_a_body_of_300_megabytes_is_not_kept(server):
    """Neither announced nor in chunks of an unknown number; the client that sends on gets its answer."""

    def chunks(count):
        yield b'{"messages": "'
        for _ in range(count):
            yield b" " * 2**20

    before = server.memory()
    for headers in ({}, {"Content_Length": str(300 * 2**20 + 14)}):
        status, _, content = server.send("POST", "/v1/chat/completions", chunks(300), **headers)
        assert status == 413 and b"--max-body-mib" in content
    assert server.memory() - before < 50


@needs_server
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/etc/hostname", "--allowed-local-media-path"),
        ("../outside.png", "--allowed-local-media-path"),
        ("link.png", "--allowed-local-media-path"),
        ("file:///etc/hostname", "--allowed-local-media-path"),
        ("file://host/etc/hostname", "--allowed-local-media-path"),
        ("/dev/zero", "--allowed-local-media-path"),
        ("http://example.com/a.png", "--allowed-media-domains"),
        ("http://localhost@example.com/a.png", "--allowed-media-domains"),
        ("http://user@localhost/a.png", "--allowed-media-domains"),
        ("http://localhost:{port}/health", "not public"),
        ("http://127.0.0.1:{port}/health", "not public"),
        ("http://LOCALHOST.:{port}/health", "not public"),
        ("http://[::1]:{port}/health", "--allowed-media-domains"),
        ("http://0x7f000001:{port}/health", "--allowed-media-domains"),
        ("ftp://localhost/a.png", "--allowed-local-media-path"),
        ("http://[", "--allowed-media-domains"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,AAAA", "damaged"),
        ("iVBORw0KGgo=", "no data URL"),
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_addresses_that_are_not_read(server, url, reason, kind):
    error = server.refusal(question([url_part(url.format(port=server.port), kind)]))
    if not (kind == "video_url" and reason == "damaged"):
        assert reason in error["message"]
    assert error["param"] == f"messages[0].content[0].{kind}.url"


@needs_server
@pytest.mark.parametrize("url", ["red.png", "{folder}/red.png", "file://{folder}/red.png"])
def test_files_of_the_allowed_folder(server, url):
    content = [url_part(url.format(folder=server.folder)), *image_question()[1:]]
    assert server.text(content) == server.text(image_question())


@needs_server
@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{url}'\n"],
    ids=["hls", "concat"],
)
def test_playlists_do_not_lead_out(server, playlist):
    with loopback_server(lambda handler: handler.send_error(404)) as (port, seen):
        playlist = playlist.format(url=f"http://127.0.0.1:{port}/a.ts")
        url = "data:video/mp4;base64," + base64.b64encode(playlist.encode()).decode()
        assert "no usual format" in server.refusal(question([url_part(url, "video_url")]))["message"]
        assert not seen


@needs_server
def test_only_the_usual_formats(server):
    """Some readers of others start programs or open what a file names."""
    for part in (image_part(png(image_format="PCX")), video_part(container_format="nut")):
        assert server.refusal(question([part]))["code"] == "unreadable_media"
    for image_format in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        server.text([image_part(png(image_format=image_format))])
    for container_format in ("matroska", "avi", "mov", "mpegts"):
        server.text([video_part(container_format=container_format)])


@needs_server
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ 'x' * 9**9 }}"),
        ("chat_template_kwargs", {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}),
        ("chat_template_kwargs", {"tokenizer_kwargs": {}}),
        ("chat_template_kwargs", {"num_frames": 2, "fps": 1}),
        ("chat_template_kwargs", {"num_frames": 0}),
        ("documents", [{"text": "x"}]),
        ("tools", [{"type": "function", "function": {"name": "f", "description": "{{ 1 }}"}}]),
        ("generation_config", '{"max_new_tokens": 100000}'),
        ("mm_processor_kwargs", {"size": {"shortest_edge": 10000}}),
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("temperature", 1e-30),
        ("temperature", "0"),
        ("temperature", True),
        ("top_p", -1),
        ("frequency_penalty", -2),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("logit_bias", {"505": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": None}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("messages", []),
        ("messages", None),
        ("messages", [{"role": "system", "content": "x"}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": "\ud800"}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "path": "/etc/hostname"}]}]),
        ("messages", [{"role": "user", "content": [{"text": "no type"}]}]),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [{}]}]),
        ("messages", [{"role": "assistant", "content": [image_part()]}]),
    ],
)
def test_fields_that_are_refused(server, field, value):
    error = server.refusal(question(**{field: value}))
    assert (error["param"] or "").startswith(field)


@needs_server
def test_only_the_served_model(server):
    for name in ("other/model", "/etc", CHECKPOINT + "/", ""):
        assert server.refusal(question(model=name), 404)["code"] == "model_not_found"
    assert server.send("GET", "/v1/models/other")[0] == 404
    for path in (
        "/load_model",
        "/reset",
        "/v1/responses",
        "/v1/completions",
        "/docs",
        "/openapi.json",
        "/v1/systemone",
    ):
        assert server.send("POST", path, b'{"model": "other/model"}')[0] == 404
    status, headers, _ = server.send("GET", "/v1/chat/completions")
    assert status == 405 and headers["Allow"] == "POST"


@needs_server
def test_bodies_that_are_no_request(server):
    deep = b"[" * 100_001
    for body in (b"", b"null", b"[]", b"{", b"\xff", b'{"messages": NaN}', deep, b'{"seed": ' + b"9" * 5000 + b"}"):
        server.refusal(body, 413 if body is deep else 400)
    for headers in ({"Content_Type": "text/plain"}, {"Content_Encoding": "gzip"}):
        server.refusal(question(), 415, **headers)


@needs_server
def test_every_malformed_body_gets_a_reason(server):
    """A good request with something else in each place, and with damaged bytes."""
    good = question([image_part(), {"type": "text", "text": "?"}], max_tokens=1)
    values = [None, True, -1, 2**64, 10**400, 1e308, "", "\x00", "<image>", [], {}, [[]], {"a": 1}, {"url": 1}]
    bodies = [json.dumps(replaced(good, path, value)).encode() for path in places(good) for value in values]
    chance = random.Random(0)
    picture = png()
    for _ in range(100):
        damaged = bytearray(json.dumps(good).encode())
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        bodies += [bytes(damaged), bytes(damaged[: chance.randrange(len(damaged))])]
        damaged = bytearray(picture)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        bodies.append(json.dumps(question([image_part(bytes(damaged))], max_tokens=1)).encode())
    assert len(bodies) > 400
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(server.post, bodies))
    for body, (status, answer) in zip(bodies, answers):
        assert status < 500, body
        assert status == 200 or answer["error"]["message"], body
    assert {200, 400} <= {status for status, _ in answers}


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@needs_server
def test_who_may_ask(server):
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:1", "LOCALHOST"):
        assert server.send("GET", "/v1/models", Host=host)[0] == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "localhost@evil",
        "10.0.0.1",
        "",
    ):
        assert server.send("GET", "/health", Host=host)[0] == 403
    for origin in ("http://localhost:3000", "http://127.0.0.1"):
        assert server.post(question(max_tokens=1), Origin=origin)[0] == 200
    for origin in ("http://evil.example", "null", "http://localhost.evil.example", "http://["):
        assert server.refusal(question(), 403, Origin=origin)["code"] == "origin_not_allowed"
    for key in (None, "Bearer", "Bearer a", "Bearer a keys", f"Basic {KEY}", "Bearer \xe4"):
        assert server.refusal(question(), 401, Authorization=key)["code"] == "invalid_api_key"
        assert server.send("GET", "/v1/models", Authorization=key)[0] == 401
    assert server.send("GET", "/health", Authorization=None)[0] == 200


# The application in this process, with parts that are slow or fail.


def application(monkeypatch, prepare=None, **options):
    """The guarded application of the small model, whose preparation of inputs is replaced."""
    pytest.importorskip("fastapi")
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.utils import GenerationState

    from llava_mini.serving.application import GuardedApplication
    from llava_mini.serving.chat import ChatCompletions
    from llava_mini.serving.settings import Settings

    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    settings = Settings(**options)
    chat = ChatCompletions("tiny", model, processor, ChatCompletionHandler(None, GenerationState()), settings)
    if prepare is not None:
        real = chat.prepare
        monkeypatch.setattr(chat, "prepare", lambda *arguments: prepare(real, *arguments))
    return GuardedApplication(health, chat, settings, host="127.0.0.1")


async def health(scope, receive, send):
    """What stands for transformers' application."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


async def call(application, method, path, body=b"", **headers):
    """Status and body of one request without a network."""
    headers = {"host": "localhost"} | headers
    scope = {"type": "http", "method": method, "path": path}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    messages, sent = [{"type": "http.request", "body": body}], []

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    async def send(message):
        sent.append(message)

    await application(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@needs_server
def test_health_answers_while_inputs_are_prepared(monkeypatch):
    def prepare(real, *arguments):
        time.sleep(0.5)
        return real(*arguments)

    async def ask_and_look():
        running = application(monkeypatch, prepare)
        busy = asyncio.ensure_future(call(running, "POST", "/v1/chat/completions", json.dumps(question()).encode()))
        waits = []
        while not busy.done():
            start = time.monotonic()
            assert (await call(running, "GET", "/health"))[0] == 200
            await asyncio.sleep(0.01)
            waits.append(time.monotonic() - start)
        assert busy.result()[0] == 200
        return waits

    waits = asyncio.run(ask_and_look())
    # In the event loop one wait would be the whole preparation.
    assert len(waits) > 10 and max(waits) < 0.4


@needs_server
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_is_not_the_requests_fault(monkeypatch, stream):
    running = application(monkeypatch)
    monkeypatch.setattr(running.chat.model, "generate", lambda **_: 1 / 0)
    body = json.dumps(question(stream=stream)).encode()
    status, content = asyncio.run(call(running, "POST", "/v1/chat/completions", body))
    assert status == (200 if stream else 500)
    last = content.decode().strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "server_error"


@needs_server
def test_open_requests_together_hold_so_much_and_give_it_back(monkeypatch):
    from llava_mini.serving.settings import HELD_BODIES

    def prepare(real, *arguments):
        time.sleep(0.1)
        return real(*arguments)

    async def ask():
        running = application(monkeypatch, prepare, max_body_mib=0.01)
        # Nearly the largest body.
        body = json.dumps(question(user="x" * 10_000)).encode()
        answers = await asyncio.gather(
            *[call(running, "POST", "/v1/chat/completions", body) for _ in range(2 * HELD_BODIES)]
        )
        return running.account.held, [status for status, _ in answers]

    left, statuses = asyncio.run(ask())
    assert left == 0
    assert statuses.count(200) == statuses.count(429) == HELD_BODIES


@needs_server
@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.0.0.1", None, [200, 403, 403]),
        ("localhost", ["gate.example"], [200, 200, 403]),
        ("0.0.0.0", None, [200, 200, 200]),
        ("0.0.0.0", ["gate.example,other.example"], [403, 200, 403]),
    ],
)
def test_names_of_the_server(host, allowed, expected):
    from llava_mini.serving.application import GuardedApplication
    from llava_mini.serving.settings import Settings

    running = GuardedApplication(health, None, Settings(allowed_hosts=allowed), host)
    names = ("localhost", "gate.example", "evil.example")
    assert [asyncio.run(call(running, "GET", "/health", host=name))[0] for name in names] == expected


@needs_server
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_body_mib": 0}, "--max-body-mib"),
        ({"media_timeout": float("nan")}, "--media-timeout"),
        ({"allowed_local_media_path": Path("/nowhere")}, "--allowed-local-media-path"),
        ({"api_key": " "}, "--api-key"),
    ],
)
def test_options_that_make_no_sense(options, reason):
    from llava_mini.serving.settings import Settings

    with pytest.raises(ValueError, match=reason):
        Settings(**options)


# Fetching, against servers on this machine that stand for public ones.


@contextlib.contextmanager
def loopback_server(answer):
    """A server whose GET is `answer`, its port and the paths it was asked for."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (the base class's name)
            seen.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running.server_port, seen
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def fetch(monkeypatch):
    """A function: a URL on this machine to what is fetched from it, this machine standing for a public one."""
    pytest.importorskip("fastapi")
    from llava_mini.serving import media
    from llava_mini.serving.chat_requests import Media
    from llava_mini.serving.exchange import HeldBytes, Holding
    from llava_mini.serving.settings import Settings

    monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1")

    def get(url):
        settings = Settings(allowed_media_domains=["127.0.0.1"], max_media_mib=1, media_timeout=1)
        reader = media.MediaReader(settings)
        account = HeldBytes(2**22)
        with Holding(account) as holding:
            (content,) = asyncio.run(reader.fetch_all([Media("image", url, "", {})], holding))
        assert account.held == 0
        return content

    return get


def respond(handler, content=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


@needs_server
def test_fetched_and_redirected_within_the_allowed_hosts(fetch):
    def answer(handler):
        if handler.path == "/a.png":
            respond(handler, b"picture")
        else:
            respond(handler, status=302, Location="/a.png")

    with loopback_server(answer) as (port, seen):
        assert fetch(f"http://127.0.0.1:{port}/moved") == b"picture"
        assert seen == ["/moved", "/a.png"]


@needs_server
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://localhost:{port}/", "--allowed-media-domains"),
        ("http://127.0.0.2:{port}/", "--allowed-media-domains"),
        ("file:///etc/hostname", "--allowed-media-domains"),
        ("/again", "more than 3 times"),
    ],
)
def test_redirects_do_not_lead_out(fetch, location, reason):
    from llava_mini.serving.exchange import RefusedRequest

    with loopback_server(lambda handler: respond(handler, status=302, Location=location.format(port=port))) as (
        port,
        seen,
    ):
        with pytest.raises(RefusedRequest, match=reason):
            fetch(f"http://127.0.0.1:{port}/")
        assert len(seen) == (4 if location == "/again" else 1)


def drip(handler):
    respond(handler)
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.1)


@needs_server
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: respond(handler, b"x" * (2**20 + 1)), "--max-media-mib"),
        (lambda handler: respond(handler, b"x", Content_Encoding="gzip"), "compressed"),
        (lambda handler: respond(handler, status=404), "404"),
        (lambda handler: respond(handler, status=302), "302"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "ProtocolError"),
        (drip, "--media-timeout"),
    ],
    ids=["large", "compressed", "missing", "nowhere", "no HTTP", "drips"],
)
def test_answers_that_are_not_taken(fetch, answer, reason):
    from llava_mini.serving.exchange import RefusedRequest

    start = time.monotonic()
    with loopback_server(answer) as (port, _), pytest.raises(RefusedRequest, match=reason):
        fetch(f"http://127.0.0.1:{port}/")
    assert time.monotonic() - start < 4


@needs_server
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address, expected):
    from llava_mini.serving.media import is_public

    assert is_public(address) is expected
