"""The README's first command gives right answers."""

import re
import subprocess
import sys
from pathlib import Path


QUICKSTART = Path(__file__).parents[1] / "examples/quickstart.py"


def test_answers_are_right(tmp_path):
    output = subprocess.run(
        [sys.executable, QUICKSTART], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300
    ).stdout
    answers = dict(re.findall(r"^(.+?)  +(\S.*?) +\d+ tokens", output, re.MULTILINE))
    assert answers == {
        "What is this?": "guitar",
        "What kind of thing is this?": "instrument",
        "What colour is the dog?": "there is no dog",
        "What do you see?": "car",
        "What color is the car?": "red",
        "what do you see": "elephant",
        "What colour is the elephant?": "gray",
        "Is there a dog?": "no",
        "What is on the left?": "elephant",
        "Where is the pizza, left or right?": "right",
        "How many animals are there?": "1",
        "What is not an animal?": "pizza",
        "Describe the picture.": "an elephant and a pizza",
        "What garment is this?": "boot",
        "What colour is the circle?": "red",
        "Which shape is blue?": "square",
        "How many shapes are there?": "2",
        "Is there a red circle?": "yes",
        "Is the square small or large?": "small",
        "Is the circle on the left or on the right?": "left",
        "What colour is the background?": "white",
        "Which digit is this?": "7",
        "What shape is it?": "square",
        "What colour is the shape?": "green",
        "Which way does the shape move?": "right",
    }
    assert "Which shape is red? Through pipeline(): circle" in output
    assert "14 tokens, 1 of them vision" in output and "4 of them vision" in output
    assert (tmp_path / "attention.png").stat().st_size > 1000
