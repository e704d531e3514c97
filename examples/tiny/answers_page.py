"""
Draws a page of sixteen answers, right and wrong ones as they come: pictures by an artist that training never saw,
garments of Fashion-MNIST's test split, new scenes and drawn shapes.

    python examples/tiny/answers_page.py --model examples/tiny/checkpoint --output examples/tiny/answers.png
"""

import argparse
import io
import random
from pathlib import Path

import scenes
from evaluate_things import Asker, sample_about_things
from make_data import sample_question
from matplotlib.figure import Figure
from picture_scenes import Library, draw_picture
from pictures import DEFAULT_CACHE, TRAINING_STYLES, UNSEEN_STYLES
from PIL import Image
from questions import Question


COLUMNS, ROWS = 4, 4
# What is asked: by the artist never seen, of the test split, or about shapes.
TYPES = (
    *("name", "name", "name", "name", "thing on a side", "how many", "is there", "what is not"),
    *("thing colour", "absent thing", "thing caption", "garment", "garment", "relation", "number", "absent shape"),
)


def choose(library: Library, seed: int) -> list[tuple[Image.Image, Question]]:
    """One picture with a question of each of `TYPES`."""
    chosen = []
    for i, kind in enumerate(TYPES):
        rng = random.Random(f"page {seed} {i}")
        if kind in ("relation", "number", "absent shape"):
            shown, question = sample_question(kind, "test", rng)
            chosen.append((scenes.draw(shown), question))
        else:
            shown, question = sample_about_things(kind, library, rng)
            chosen.append((draw_picture(shown, library), question))
    return chosen


def draw_page(chosen: list[tuple[Image.Image, Question]], answers: list[str], path: Path):
    """Pictures with question and answer; of a wrong one also the right answer, in red."""
    figure = Figure(figsize=(10, 11), layout="constrained")
    for axis, (picture, question), answer in zip(figure.subplots(ROWS, COLUMNS).flat, chosen, answers):
        axis.imshow(picture)
        axis.set_axis_off()
        is_right = answer == question.answer
        verdict = answer if is_right else f"{answer}\n(right: {question.answer})"
        axis.set_title(f"{question.text}\n{verdict}", fontsize=9, color="black" if is_right else "firebrick")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=75)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "checkpoint"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    parser.add_argument("--training_artists", action="store_true", help="instead of the one never seen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "answers.png")
    arguments = parser.parse_args()
    styles = TRAINING_STYLES if arguments.training_artists else UNSEEN_STYLES[:1]
    chosen = choose(Library.load(arguments.cache, styles, ["test"]), arguments.seed)
    asker = Asker(arguments.model)
    answers = asker.answer([picture for picture, _ in chosen], [question.text for _, question in chosen])
    draw_page(chosen, answers, arguments.output)
    for (_, question), answer in zip(chosen, answers):
        print(f"{question.text} {answer} ({'right' if answer == question.answer else question.answer})")


if __name__ == "__main__":
    main()
