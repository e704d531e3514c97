"""How else people write a question: another wording, the other spelling of colour, lower case, no question mark."""

import random
import re


# Third wordings for the questions about drawn shapes, which have two.
REWORDED = (
    (r"^(?:What|Which) colour (?:is|does) the ([a-z ]+?)(?: have)?\?$", r"Tell me the colour of the \1."),
    (r"^Which background colour is it\?$", "Tell me the colour of the background."),
    (r"^(?:What|Which) number .*$", "Read the number."),
    (r"^(?:Which digit is this|What digit is written by hand)\?$", "Name the digit."),
    (r"^How many shapes .*$", "Count the shapes."),
    (r"^(?:What shape is it|Which shape do you see)\?$", "Name the shape."),
    (r"^Which shape is (on the left|on the right|at the top|at the bottom)\?$", r"Name the shape \1."),
    (r"^(?:Which shape is|What shape is the) (\w+)(?: one)?\?$", r"Name the \1 shape."),
    (r"^Is the ([a-z ]+) (?:small or large|large or small)\?$", r"What size is the \1?"),
    (r"^Is the ([a-z ]+) on the left or on the right\?$", r"Where is the \1, left or right?"),
    (r"^Is the ([a-z ]+) at the top or at the bottom\?$", r"Where is the \1, top or bottom?"),
    (r"^Is there a ([a-z ]+)\?$", r"Do you see a \1?"),
    (r"^(?:Which way|In which direction) does the shape move\?$", "Where does the shape go?"),
    (r"^Which (\w+) comes (first|last)\?$", r"Which \1 is \2?"),
    (r"^Does the shape grow or shrink\?$", "Does the shape shrink or grow?"),
    (r"^(?:Describe the picture\.|What does the picture show\?)$", "What is in the picture?"),
)
REWORD, AMERICAN, LOWER, NO_MARK = 0.3, 0.4, 0.25, 0.25


def reword(text: str) -> str:
    """The third wording, where there is one."""
    for pattern, replacement in REWORDED:
        if re.match(pattern, text):
            return re.sub(pattern, replacement, text)
    return text


def to_american(text: str) -> str:
    """Colour as it is spelled in America."""
    return text.replace("colour", "color")


def vary(text: str, rng: random.Random) -> str:
    """The question as somebody else might type it."""
    text = reword(text) if rng.random() < REWORD else text
    text = to_american(text) if rng.random() < AMERICAN else text
    text = text[0].lower() + text[1:] if rng.random() < LOWER else text
    return text.rstrip("?.") if rng.random() < NO_MARK else text


def vocabulary(texts: list[str]) -> list[str]:
    """Each text in every way, for the tokenizer."""
    ways = [*texts, *map(reword, texts)]
    return [*ways, *map(to_american, ways), *(text[0].lower() + text[1:] for text in ways)]
