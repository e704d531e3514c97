# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Asks the small model in examples/tiny/checkpoint about a drawn picture, a handwritten digit and a short video, the one
in examples/tiny/pictures_checkpoint about pictures of things, and saves a picture of what the vision token looked at.

    python examples/quickstart.py [--checkpoint DIR_OR_HUB_ID] [--image FILE --question TEXT]
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import llava_mini  # noqa: F401 registers the Auto classes


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


PICTURES = Path(__file__).parent / "tiny" / "pictures"
KNOWS_THINGS = Path(__file__).parent / "tiny" / "pictures_checkpoint"
# By picture: what is asked about it.
THINGS = {
    "guitar.png": ("What is this?", "What kind of thing is this?"),
    "car.png": ("What is in the picture?", "What color is the car?"),
    "elephant.png": ("what do you see", "What colour is the elephant?"),
    "boot.png": ("What garment is this?",),
}
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


def ask_about_things():
    """What a person would call pictures, asked of the model that knows more than shapes."""
    model = AutoModelForImageTextToText.from_pretrained(KNOWS_THINGS)
    processor = AutoProcessor.from_pretrained(KNOWS_THINGS)
    for name, questions in THINGS.items():
        print(f"{PICTURES / name}:")
        for question in questions:
            ask(model, processor, {"type": "image", "path": str(PICTURES / name)}, question)


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
    print(f"{question:<45} {answer:<20} {length} tokens, {vision} of them vision; {seconds:.2f} s")
    return inputs


def save_compression(model, processor, inputs, path: Path):
    """Where the vision tokens of the picture in `inputs` looked."""
    try:
        from llava_mini.visualization import plot_compression

        part = processor.image_processor
        with torch.no_grad():
            features = model.get_image_features(inputs["pixel_values"], output_compressor_attentions=True)
        figure = plot_compression(
            inputs["pixel_values"][0], features.compressor_attentions[0], part.image_mean, part.image_std
        )
    except ImportError as error:
        print(error)
        return
    figure.savefig(path)
    print(f"What the vision tokens looked at: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(Path(__file__).parent / "tiny" / "checkpoint"))
    parser.add_argument("--image", help="ask about this picture instead")
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--compression", type=Path, default=Path("compression.png"), help="where to save the picture")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    if arguments.image:
        inputs = ask(model, processor, {"type": "image", "path": arguments.image}, arguments.question)
        save_compression(model, processor, inputs, arguments.compression)
        return
    shapes = {"type": "image", "image": draw_shapes()}
    for question in QUESTIONS:
        inputs = ask(model, processor, shapes, question)
    ask(model, processor, {"type": "image", "image": draw_digit()}, "Which digit is this?")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip)
        for question in VIDEO_QUESTIONS:
            ask(model, processor, {"type": "video", "path": str(clip)}, question)
    ask_about_things()
    save_compression(model, processor, inputs, arguments.compression)
    through_pipeline = pipeline("image-text-to-text", model=model, processor=processor)
    content = [shapes, {"type": "text", "text": "Which shape is red?"}]
    output = through_pipeline(text=[{"role": "user", "content": content}], return_full_text=False)
    print(f"Which shape is red? Through pipeline(): {output[0]['generated_text'].strip()}")


if __name__ == "__main__":
    main()
