# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Asks the small model in examples/tiny/checkpoint about pictures of things, a drawn picture, a handwritten digit and a
short video, and saves a picture of what the vision token looked at and of what the question's words read.

    python examples/quickstart.py [--checkpoint DIR_OR_HUB_ID] [--image FILE --question TEXT]
"""

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from llava_mini.demo.examples import draw_digit, draw_shapes, write_clip
from llava_mini.visualization import picture_attention


CHECKPOINT = Path(__file__).parent / "tiny" / "checkpoint"
PICTURES = CHECKPOINT / "demo_examples"
# By picture: what is asked about it.
THINGS = {
    "guitar.png": ("What is this?", "What kind of thing is this?", "What colour is the dog?"),
    "car.png": ("What do you see?", "What color is the car?"),
    "elephant.png": ("what do you see", "What colour is the elephant?", "Is there a dog?"),
    "elephant_and_pizza.png": (
        "What is on the left?",
        "Where is the pizza, left or right?",
        "How many animals are there?",
        "What is not an animal?",
        "Describe the picture.",
    ),
    "boot.png": ("What garment is this?",),
}
LOOKED_AT = ("elephant_and_pizza.png", "Where is the pizza, left or right?")
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


def ask_about_things(model, processor):
    """What a person would call pictures."""
    for name, questions in THINGS.items():
        print(f"{name}:")
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
    parser.add_argument("--checkpoint", default=str(CHECKPOINT))
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
    ask_about_things(model, processor)
    shapes = {"type": "image", "image": draw_shapes()}
    print("A drawn picture, a handwritten digit, a clip:")
    for question in QUESTIONS:
        ask(model, processor, shapes, question)
    ask(model, processor, {"type": "image", "image": draw_digit()}, "Which digit is this?")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip)
        for question in VIDEO_QUESTIONS:
            ask(model, processor, {"type": "video", "path": str(clip)}, question)
    name, question = LOOKED_AT
    save_attention(model, processor, str(PICTURES / name), question, arguments.attention)
    through_pipeline = pipeline("image-text-to-text", model=model, processor=processor)
    content = [shapes, {"type": "text", "text": "Which shape is red?"}]
    output = through_pipeline(text=[{"role": "user", "content": content}], return_full_text=False)
    print(f"Which shape is red? Through pipeline(): {output[0]['generated_text'].strip()}")


if __name__ == "__main__":
    main()
