"""
Draws the pictures of things that the quickstart and the demo ask about, from sets whose licences allow it.

    python examples/tiny/example_pictures.py
"""

import argparse
import json
from pathlib import Path

import numpy as np
from pictures import DEFAULT_CACHE, GARMENTS, draw_svg, load_garments
from PIL import Image


SIDE = 224
GARMENT = 0  # of Fashion-MNIST's test split: a boot
# File: cut-outs as style, slug, left, top and side in pixels; and the background's colour.
PICTURES = {
    "guitar.png": ([("noto", "guitar", 22, 22, 180)], "white"),
    "elephant_and_pizza.png": ([("twemoji", "elephant", 8, 66, 96), ("noto", "pizza", 122, 60, 92)], "white"),
    "elephant.png": ([("twemoji", "elephant", 24, 24, 176)], (196, 224, 240)),
    "car.png": ([("twemoji", "automobile", 24, 24, 176)], "white"),
}


# What the demo offers to ask, see `llava_mini.demo.examples`.
ASKED = {"guitar.png": "What is this?", "elephant_and_pizza.png": "Where is the pizza, left or right?"}


def draw_examples(folder: Path, cache_folder: Path):
    """Writes them all."""
    folder.mkdir(exist_ok=True)
    for name, (things, colour) in PICTURES.items():
        picture = Image.new("RGB", (SIDE, SIDE), colour)
        for style, slug, left, top, side in things:
            cutout = draw_svg(style, slug, cache_folder).resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(cutout, (left, top), cutout)
        picture.quantize(128).save(folder / name, optimize=True)
    photographs, classes = load_garments("test", cache_folder)
    garment = Image.fromarray(np.array(photographs[GARMENT])).resize((84, 84), Image.Resampling.BICUBIC)
    garment.save(folder / f"{GARMENTS[classes[GARMENT]]}.png", optimize=True)
    (folder / "questions.json").write_text(json.dumps(ASKED, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    draw_examples(Path(__file__).parent / "checkpoint" / "demo_examples", parser.parse_args().cache)


if __name__ == "__main__":
    main()
