# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pictures and a clip to begin with, drawn when the demo starts. A checkpoint may bring more that it knows: files in its
folder `demo_examples`, with `questions.json`, which says what to ask about each: `{"cat.png": "What is this?"}`.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw


CHECKPOINT_FOLDER, QUESTIONS = "demo_examples", "questions.json"
# A seven from the part of scikit-learn's handwritten digits that the small model was not trained on.
DIGIT = """
0 0 2 13 16 8 0 0
0 0 13 7 7 13 0 0
0 1 7 0 7 13 2 0
0 0 1 10 16 16 13 0
0 0 6 13 16 2 0 0
0 0 1 5 11 0 0 0
0 0 0 12 4 0 0 0
0 0 2 14 0 0 0 0
"""
CLIP_SIDE, CLIP_FRAMES, CLIP_RATE = 84, 32, 8


@dataclass(frozen=True)
class Example:
    """A file and a question about it."""

    path: Path
    question: str


def draw_shapes() -> Image.Image:
    """A large red circle on the left and a small blue square on the right."""
    picture = Image.new("RGB", (336, 336), "white")
    canvas = ImageDraw.Draw(picture)
    canvas.ellipse((30, 110, 150, 230), fill=(220, 40, 40))
    canvas.rectangle((238, 66, 290, 118), fill=(40, 80, 220))
    return picture


def draw_night() -> Image.Image:
    """A large yellow triangle above a small green square, on black."""
    picture = Image.new("RGB", (336, 336), (14, 14, 14))
    canvas = ImageDraw.Draw(picture)
    canvas.polygon([(168, 48), (112, 150), (224, 150)], fill=(240, 210, 40))
    canvas.rectangle((142, 226, 194, 278), fill=(40, 160, 60))
    return picture


def draw_digit() -> Image.Image:
    """White ink on black."""
    ink = np.array([[int(value) for value in line.split()] for line in DIGIT.split("\n") if line.strip()])
    picture = Image.new("L", (84, 84), 14)
    picture.paste(Image.fromarray((ink * 15.9).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC), (10, 10))
    return picture.convert("RGB")


def write_clip(path: Path):
    """Four seconds of a green square on its way to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE, options={"crf": "8"})
        stream.width = stream.height = CLIP_SIDE
        stream.pix_fmt = "yuv420p"  # what browsers show
        for i in range(CLIP_FRAMES):
            picture = Image.new("RGB", (CLIP_SIDE, CLIP_SIDE), (248, 248, 248))
            left = 6 + 40 * i / (CLIP_FRAMES - 1)
            ImageDraw.Draw(picture).rectangle((left, 30, left + 22, 52), fill=(40, 160, 60))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


# Name, what makes it, what to ask. Questions that the small model in examples/tiny answers rightly; a test asks them.
DRAWN: tuple[tuple[str, Callable[[], Image.Image] | None, str], ...] = (
    ("shapes.png", draw_shapes, "What colour is the circle?"),
    ("night.png", draw_night, "Is the triangle above the square?"),
    ("digit.png", draw_digit, "Which digit is this?"),
    ("clip.mp4", None, "Which way does the shape move?"),
)


def write_examples(folder: Path, checkpoint: str) -> list[Example]:
    """
    Makes the examples' files in `folder`: what the checkpoint brings, then what is drawn.

    Raises:
        ValueError: what the checkpoint brings can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    brought = Path(checkpoint) / CHECKPOINT_FOLDER
    if (brought / QUESTIONS).is_file():
        questions = json.loads((brought / QUESTIONS).read_text(encoding="utf-8"))
        for name, question in questions.items():
            if Path(name).name != name or not (brought / name).is_file():
                raise ValueError(f"{brought / QUESTIONS} names {name!r}, which is no file beside it.")
            shutil.copyfile(brought / name, folder / name)
            examples.append(Example(folder / name, question))
    for name, draw, question in DRAWN:
        path = folder / name
        if draw is None:
            write_clip(path)
        else:
            draw().save(path)
        examples.append(Example(path, question))
    return examples
