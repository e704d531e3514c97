# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Requests a second and time to first token of both engines of `llava-mini serve`, which the script starts and ends.

    python examples/benchmarks/serving.py                             # the small model of examples/tiny
    python examples/benchmarks/serving.py --scale 0.25 --requests 16  # random weights, a quarter of Vicuna-7B's widths
    python examples/benchmarks/serving.py --model DIR --dtype bfloat16 --device cuda  # a checkpoint on a GPU

The same prompts go to both, each with a picture of its own, so that no cache has the answer. It needs vLLM and the
extra `serve` in one environment.
"""

import argparse
import base64
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import openai
import torch
from PIL import Image
from shapes import mini_config, write_results
from timing import NO_GPU, device_name
from transformers import AutoProcessor

from llava_mini import LlavaMiniForConditionalGeneration


TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
ENGINES = ("transformers", "vllm")
NAME = "model"
START_SECONDS = 600
MAX_LENGTH = 512  # as the small model's positions; prompts here have fewer than 100 tokens


@dataclass
class Answer:
    """Seconds of one request to its first token and to its end."""

    first: float
    total: float


def make_random(directory: Path, scale: float) -> Path:
    """A checkpoint with random weights at Vicuna-7B's and CLIP-L's widths times `scale`, with the small one's words."""
    config = mini_config("Vicuna-7B", scale=scale)
    processor = AutoProcessor.from_pretrained(TINY)
    config.text_config.vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    LlavaMiniForConditionalGeneration(config).save_pretrained(directory)
    size = config.vision_config.image_size
    for part in (processor.image_processor, processor.video_processor):
        part.size, part.crop_size = {"shortest_edge": size}, {"height": size, "width": size}
    processor.save_pretrained(directory)
    return directory


def make_content(seed: int) -> list[dict]:
    """A picture of noise and a question."""
    pixels = np.random.default_rng(seed).integers(0, 255, (84, 84, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"What is shown here? ({seed})"}]


@contextmanager
def running(engine: str, model: Path, arguments: argparse.Namespace) -> Iterator[openai.OpenAI]:
    """A client of a server that runs meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = ["--max-model-len", str(MAX_LENGTH), "--max-num-seqs", str(max(arguments.clients))]
    own += ["--served-model-name", NAME, *arguments.vllm_options]
    own = own if engine == "vllm" else ["--device", arguments.device]
    options = ["--engine", engine, "--port", port, "--dtype", arguments.dtype, *own]
    command = [sys.executable, "-m", "llava_mini.cli", "serve", str(model), *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
        except RuntimeError:
            log.seek(0)
            print(log.read()[-3000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen):
    """
    Raises:
        RuntimeError: the server does not start.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"The server did not start, or ended with code {process.poll()}.")


def ask(client: openai.OpenAI, model: str, seed: int, new_tokens: int) -> Answer:
    """One streamed request."""
    messages = [{"role": "user", "content": make_content(seed)}]
    start = time.perf_counter()
    first = None
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=new_tokens, temperature=0, stream=True
    )
    for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
    total = time.perf_counter() - start
    return Answer(total if first is None else first, total)


def measure(client: openai.OpenAI, model: str, clients: int, seeds: range, new_tokens: int) -> list[float]:
    """Requests a second, median and 95th-percentile milliseconds to the first token."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda seed: ask(client, model, seed, new_tokens), seeds))
    seconds = time.perf_counter() - start
    firsts = sorted(1000 * answer.first for answer in answers)
    return [len(answers) / seconds, statistics.median(firsts), float(np.quantile(firsts, 0.95))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--scale", type=float, help="random weights at this share of Vicuna-7B's widths, instead")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vllm-options", nargs=argparse.REMAINDER, default=[], help="last; for vLLM's server alone")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.scale is None else make_random(Path(folder), arguments.scale)
        for engine in ENGINES:
            with running(engine, model, arguments) as client:
                name = NAME if engine == "vllm" else str(model)
                measure(client, name, 2, range(4), arguments.new_tokens)  # warm
                for i, clients in enumerate(arguments.clients, start=1):
                    seeds = range(i * arguments.requests, (i + 1) * arguments.requests)
                    rows.append([engine, clients, *measure(client, name, clients, seeds, arguments.new_tokens)])
    header = ["engine", "clients", "requests/s", "first token, median ms", "first token, 95th percentile ms"]
    what = "tiny" if arguments.scale is None else f"random_{arguments.scale:g}"
    write_results(
        f"serving_{what}_{arguments.device}",
        "Both engines of `llava-mini serve`",
        header,
        rows,
        device_name(arguments.device),
        notes=NO_GPU if arguments.device == "cpu" else "",
        model=what,
        dtype=arguments.dtype,
        requests=arguments.requests,
    )


if __name__ == "__main__":
    main()
