# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
From an authors-layout checkpoint to an answer: convert it, ask about a drawn picture through pipeline().

    python examples/quickstart.py [--checkpoint AUTHORS_DIR] [--query TEXT]

Without --checkpoint it takes the tiny random one of the tests, whose answer is noise: what it shows is the way.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw
from transformers import pipeline

import llava_mini  # noqa: F401 (registers the Auto classes)


ROOT = Path(__file__).parents[1]


def draw_picture() -> Image.Image:
    """A red ball on grass, under a blue sky."""
    picture = Image.new("RGB", (320, 240), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 170, 320, 240), fill="forestgreen")
    draw.ellipse((120, 100, 220, 200), fill="crimson")
    return picture


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "tests/golden/standard/original")
    parser.add_argument("--query", default="What is in the picture?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "converted"
        converter = ROOT / "conversion/convert_llava_mini_weights_to_hf.py"
        subprocess.run([sys.executable, converter, arguments.checkpoint, converted], check=True)
        ask = pipeline("image-text-to-text", model=str(converted))
        content = [{"type": "image", "image": draw_picture()}, {"type": "text", "text": arguments.query}]
        start = time.perf_counter()
        answer = ask(
            text=[{"role": "user", "content": content}], generate_kwargs={"max_new_tokens": 16, "do_sample": False}
        )
        seconds = time.perf_counter() - start
    print(f"question: {arguments.query}")
    print(f"answer:   {answer[0]['generated_text'][-1]['content']!r} ({seconds:.2f} s)")


if __name__ == "__main__":
    main()
