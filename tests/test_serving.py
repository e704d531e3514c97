"""`llava-mini serve`: a real server on this machine, asked over HTTP for the small model, kindly and not."""

import argparse
import base64
import contextlib
import http.client
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving_client import (
    CHECKPOINT,
    KEY,
    NEW_TOKENS,
    bomb,
    image_part,
    image_question,
    loopback_server,
    needs_server,
    png,
    question,
    run_server,
    url_part,
    video_part,
)
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mini.serving import add_serve_parser, serve


# The server's limits here, below their defaults, so that little is needed to go beyond them.
MAX_BODY_MIB, MAX_IMAGES, MAX_PIXELS, MAX_FRAMES, MAX_NEW_TOKENS = 1, 3, 100_000, 10, 450
BODY_SECONDS = 5
VOCABULARY = json.loads((Path(CHECKPOINT) / "config.json").read_text())["text_config"]["vocab_size"]
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
        ("logit_bias", {str(VOCABULARY): 1}),
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
