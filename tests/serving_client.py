"""A server of the small model in a process of its own, requests to it, and what goes into them."""

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers.utils.import_utils import is_serve_available


needs_server = pytest.mark.skipif(not is_serve_available(), reason="the extra `serve` is not installed")
CHECKPOINT = str(Path(__file__).parents[1] / "examples/tiny/checkpoint")
START_SECONDS = 120
NEW_TOKENS, NUM_FRAMES = 8, 5
KEY = "a key"


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
