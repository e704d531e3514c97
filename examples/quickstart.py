# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Asks the small model in examples/tiny/checkpoint about a drawn picture, a handwritten digit and a short video, and saves
a picture of what its one vision token looked at and of what the question's words read.

    python examples/quickstart.py [--checkpoint DIR_OR_HUB_ID] [--image FILE --question TEXT]
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import llava_mini  # noqa: F401 registers the Auto classes
from llava_mini.visualization import picture_attention


# A seven from the part of scikit-learn's handwritten digits that the model was not trained on.
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


QUESTIONS = (
    "What colour is the circle?",
    "Which shape is blue?",
    "How many shapes are there?",
    "Is there a red circle?",
    "Is the square small or large?",
    "Is the circle on the left or on the right?",
    "What colour is the background?",
)
VIDEO_QUESTIONS = ("What shape is it?", "What colour is the shape?", "Which way does the shape move?")


def draw_shapes() -> Image.Image:
    """A large red circle on the left and a small blue square on the right."""
    picture = Image.new("RGB", (336, 336), "white")
    canvas = ImageDraw.Draw(picture)
    canvas.ellipse((30, 110, 150, 230), fill=(220, 40, 40))
    canvas.rectangle((238, 66, 290, 118), fill=(40, 80, 220))
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
        stream = container.add_stream("libx264", rate=8, options={"crf": "8"})
        stream.width = stream.height = 84
        for i in range(32):
            picture = Image.new("RGB", (84, 84), (248, 248, 248))
            left = 6 + 40 * i / 31
            ImageDraw.Draw(picture).rectangle((left, 30, left + 22, 52), fill=(40, 160, 60))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def ask(model, processor, content: dict, question: str):
    """One question about one picture or video; prints the answer, the prompt's tokens and the time."""
    started = time.perf_counter()
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [content, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    seconds = time.perf_counter() - started
    length = inputs["input_ids"].shape[1]
    answer = processor.decode(ids[0, length:], skip_special_tokens=True).strip()
    placeholders = (processor.image_token_id, processor.video_token_id)
    vision = sum(int((inputs["input_ids"] == token).sum()) for token in placeholders)
    print(f"{question:<45} {answer:<12} {length} tokens, {vision} of them vision; {seconds:.2f} s")


def save_attention(model, processor, picture: Image.Image | str, question: str, path: Path):
    """What the vision tokens looked at and what the question's words read, on the picture."""
    try:
        picture_attention(model, processor, picture, question).save(path)
    except ImportError as error:
        print(error)
        return
    print(f"What the vision tokens looked at and the words read: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(Path(__file__).parent / "tiny" / "checkpoint"))
    parser.add_argument("--image", help="ask about this picture instead")
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--attention", type=Path, default=Path("attention.png"), help="where to save the picture")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    if arguments.image:
        ask(model, processor, {"type": "image", "path": arguments.image}, arguments.question)
        save_attention(model, processor, arguments.image, arguments.question, arguments.attention)
        return
    shapes = {"type": "image", "image": draw_shapes()}
    for question in QUESTIONS:
        ask(model, processor, shapes, question)
    ask(model, processor, {"type": "image", "image": draw_digit()}, "Which digit is this?")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip)
        for question in VIDEO_QUESTIONS:
            ask(model, processor, {"type": "video", "path": str(clip)}, question)
    save_attention(model, processor, shapes["image"], QUESTIONS[0], arguments.attention)
    through_pipeline = pipeline("image-text-to-text", model=model, processor=processor)
    content = [shapes, {"type": "text", "text": "Which shape is red?"}]
    output = through_pipeline(text=[{"role": "user", "content": content}], return_full_text=False)
    print(f"Which shape is red? Through pipeline(): {output[0]['generated_text'].strip()}")


if __name__ == "__main__":
    main()
