"""Questions and answers about drawn pictures and clips, by type."""

import random
from dataclasses import dataclass

import scenes
from scenes import BACKGROUNDS, COLOURS, DIRECTIONS, IMAGE_SIZE, KINDS, Clip, Scene, Shape


@dataclass(frozen=True)
class Question:
    """One question with its one right answer."""

    type: str
    text: str
    answer: str


# Guessing rate of somebody who knows the question and the possible answers, but not the picture; in "video order" also
# the two things that were shown, but not which came first.
CHANCE = {
    "background": 1 / 3,
    "colour": 1 / 6,
    "shape": 1 / 4,
    "size": 1 / 2,
    "position": 1 / 2,
    "yes/no": 1 / 2,
    "count": 1 / 3,
    "relation": 1 / 2,
    "digit": 1 / 10,
    "number": 1 / 90,
    "number colour": 1 / 6,
    "caption": 0.0,
    "unseen pair": 5 / 24,
    "video colour": 1 / 6,
    "video shape": 1 / 4,
    "video direction": 1 / 4,
    "video order": 1 / 2,
    "video growth": 1 / 2,
    "caption of three": 0.0,
    "absent shape": 0.0,
}
# Asked when measuring alone: what the card must not claim by leaving it out.
MEASURED_ONLY = ("unseen pair", "caption of three")
MIN_SEPARATION = 10  # pixels between two shapes before one is called left of the other
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def about_scene(scene: Scene, rng: random.Random) -> list[Question]:
    """All that can be asked about a picture."""
    questions = [
        Question("background", rng.choice(["What colour is the background?", "Which background colour is it?"]),
                 scene.background),
        Question("caption", rng.choice(["Describe the picture.", "What does the picture show?"]), caption(scene)),
    ]  # fmt: skip
    if scene.number is not None:
        text = rng.choice(["What number is written?", "Which number is printed here?"])
        questions.append(Question("number", text, scene.number))
        text = rng.choice(["What colour is the number?", "Which colour does the number have?"])
        questions.append(Question("number colour", text, scene.number_colour))
    if scene.digit is not None:
        text = rng.choice(["Which digit is this?", "What digit is written by hand?"])
        questions.append(Question("digit", text, _digit(scene)))
    if scene.shapes:
        text = rng.choice(["How many shapes are there?", "How many shapes do you see?"])
        questions.append(Question("count", text, str(len(scene.shapes))))
        questions += _existence(scene, rng)
    for shape in scene.shapes:
        questions += _attributes(shape, scene, rng)
    for i, first in enumerate(scene.shapes):
        for second in scene.shapes[:i]:
            questions += _relations(first, second, scene, rng)
    return questions


def about_what_is_absent(scene: Scene, rng: random.Random) -> Question:
    """The colour of a shape that the picture doesn't show; the right answer says so."""
    kind = rng.choice([kind for kind in KINDS if all(shape.kind != kind for shape in scene.shapes)])
    return Question("absent shape", f"What colour is the {kind}?", f"there is no {kind}")


def about_clip(clip: Clip, rng: random.Random) -> list[Question]:
    """All that can be asked about a video."""
    shape = clip.scene.shapes[0]
    questions = []
    if clip.event != "colour":
        text = rng.choice(["What colour is the shape?", "Which colour does the shape have?"])
        questions.append(Question("video colour", text, shape.colour))
    if clip.event != "kind":
        text = rng.choice(["What shape is it?", "Which shape do you see?"])
        questions.append(Question("video shape", text, shape.kind))
    if clip.event == "move":
        text = rng.choice(["Which way does the shape move?", "In which direction does the shape move?"])
        questions.append(Question("video direction", text, clip.direction))
    if clip.event in ("kind", "colour"):
        what = {"kind": "shape", "colour": "colour"}[clip.event]
        questions.append(Question("video order", f"Which {what} comes first?", getattr(shape, clip.event)))
        questions.append(Question("video order", f"Which {what} comes last?", clip.later))
    if clip.event in ("grow", "shrink"):
        questions.append(Question("video growth", "Does the shape grow or shrink?", clip.event))
    return questions


def caption(scene: Scene) -> str:
    """A picture in one sentence."""
    if scene.number is not None:
        return f"the {scene.number_colour} number {scene.number} on a {scene.background} background"
    if scene.digit is not None:
        return f"a handwritten {_digit(scene)} on a {scene.background} background"
    # From left to right, so that there is one right order.
    shapes = sorted(scene.shapes, key=lambda shape: shape.x)
    names = " and ".join(f"a {shape.size} {shape.colour} {shape.kind}" for shape in shapes)
    return f"{names} on a {scene.background} background"


def vocabulary() -> list[str]:
    """Every word that questions and answers are made of, for the tokenizer."""
    rng = random.Random(0)
    texts = []
    for _ in range(500):
        questions = about_clip(scenes.sample_clip(rng), rng)
        for scene in (
            scenes.sample_shapes(rng, rng.randint(1, 3)),
            scenes.sample_number(rng),
            scenes.sample_digit(rng),
        ):
            questions += about_scene(scene, rng)
        texts += [text for question in questions for text in (question.text, question.answer)]
    return texts + [" ".join([*COLOURS, *KINDS, *BACKGROUNDS, *DIRECTIONS, "yes no"])] * 50


def _digit(scene: Scene) -> str:
    return str(scenes.handwritten_digits()[1][scene.digit])


def _is_only(shape: Shape, scene: Scene, **attributes: str) -> bool:
    """Whether no other shape of the scene has these attributes."""
    others = [other for other in scene.shapes if other is not shape]
    return not any(all(getattr(other, name) == value for name, value in attributes.items()) for other in others)


def _names(shape: Shape, scene: Scene) -> list[str]:
    """Ways to name a shape that mean no other shape of the picture."""
    names = []
    if len(scene.shapes) == 1:
        names.append("shape")
    if _is_only(shape, scene, kind=shape.kind):
        names.append(shape.kind)
    if _is_only(shape, scene, kind=shape.kind, colour=shape.colour):
        names.append(f"{shape.colour} {shape.kind}")
    return names


def _attributes(shape: Shape, scene: Scene, rng: random.Random) -> list[Question]:
    questions = []
    names = _names(shape, scene)
    if [name for name in names if " " not in name]:
        name = rng.choice([name for name in names if " " not in name])
        text = rng.choice([f"What colour is the {name}?", f"Which colour does the {name} have?"])
        questions.append(Question("colour", text, shape.colour))
    if len(scene.shapes) == 1:
        questions.append(Question("shape", rng.choice(["What shape is it?", "Which shape do you see?"]), shape.kind))
    if _is_only(shape, scene, colour=shape.colour):
        text = rng.choice([f"Which shape is {shape.colour}?", f"What shape is the {shape.colour} one?"])
        questions.append(Question("shape", text, shape.kind))
    if names:
        name = rng.choice(names)
        text = rng.choice([f"Is the {name} small or large?", f"Is the {name} large or small?"])
        questions.append(Question("size", text, shape.size))
        for axis, low, high in (("x", "left", "right"), ("y", "top", "bottom")):
            offset = getattr(shape, axis) - IMAGE_SIZE / 2
            if abs(offset) > MIN_SEPARATION / 2:
                where = "on the left or on the right" if axis == "x" else "at the top or at the bottom"
                text = f"Is the {rng.choice(names)} {where}?"
                questions.append(Question("position", text, high if offset > 0 else low))
    return questions


def _existence(scene: Scene, rng: random.Random) -> list[Question]:
    """One question answered yes, one answered no that differs from a shape of the picture in one word."""
    shape = rng.choice(scene.shapes)
    present = {(s.colour, s.kind) for s in scene.shapes}
    changed = [(colour, shape.kind) for colour in COLOURS] + [(shape.colour, kind) for kind in KINDS for _ in "ab"]
    changed = rng.choice([pair for pair in changed if pair not in present and pair not in scenes.UNSEEN_PAIRS])
    questions = [
        Question("yes/no", f"Is there a {colour} {kind}?", answer)
        for (colour, kind), answer in (((shape.colour, shape.kind), "yes"), (changed, "no"))
    ]
    if len(scene.shapes) == 1:
        colour = rng.choice([other for other in COLOURS if other != shape.colour])
        kind = rng.choice([other for other in KINDS if other != shape.kind])
        questions += [Question("yes/no", f"Is the shape {shape.colour}?", "yes")]
        questions += [Question("yes/no", f"Is the shape {colour}?", "no")]
        questions += [Question("yes/no", f"Is it a {shape.kind}?", "yes"), Question("yes/no", f"Is it a {kind}?", "no")]
    return questions


def _relations(first: Shape, second: Shape, scene: Scene, rng: random.Random) -> list[Question]:
    """Two shapes compared along each axis in which they are clearly apart."""
    names = [[name for name in _names(shape, scene) if " " in name or rng.random() < 0.7] for shape in (first, second)]
    questions = []
    for axis, lower, higher in (("x", "left of", "right of"), ("y", "above", "below")):
        offset = getattr(first, axis) - getattr(second, axis)
        if abs(offset) < MIN_SEPARATION:
            continue
        true = lower if offset < 0 else higher
        if all(names):
            for relation, answer in ((true, "yes"), (OPPOSITES[true], "no")):
                a, b = (rng.choice(options) for options in names)
                questions.append(Question("relation", f"Is the {a} {relation} the {b}?", answer))
        if len(scene.shapes) == 2 and first.kind != second.kind:
            ends = ("on the left", "on the right") if axis == "x" else ("at the top", "at the bottom")
            low, high = (first, second) if offset < 0 else (second, first)
            questions.append(Question("relation", f"Which shape is {ends[0]}?", low.kind))
            questions.append(Question("relation", f"Which shape is {ends[1]}?", high.kind))
    return questions
