"""The server's parts in this process: slow or failing ones, and fetching from servers that stand for public ones."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from serving_client import CHECKPOINT, loopback_server, needs_server, question
from transformers import AutoModelForImageTextToText, AutoProcessor


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
