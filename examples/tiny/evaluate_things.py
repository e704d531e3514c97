"""
Asks a checkpoint about pictures of things that it never saw: an artist left out of training, Fashion-MNIST's test
split, new scenes, photographs of Tux Paint; in other words, and about pictures that are not square. Greedy, exact
matches. Fetches what it needs.

    python examples/tiny/evaluate_things.py --json examples/tiny/results_things.json
"""

import argparse
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import questions
import scenes
import torch
import wordings
from evaluate import BATCH_SIZE, describe_conditions, to_table
from make_data import sample_question
from picture_names import load_names
from picture_questions import CHANCE, about_picture, about_picture_clip
from picture_scenes import (
    CENTRE,
    Garment,
    Library,
    PictureClip,
    PictureScene,
    Thing,
    draw_picture,
    garment_name,
    sample_garment,
    sample_picture_clip,
    sample_things,
)
from pictures import DEFAULT_CACHE, TRAINING_STYLES, UNSEEN_STYLES, to_cutout
from PIL import Image
from questions import Question
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mini  # noqa: F401 registers the Auto classes


PORTRAIT_SIZE = 72.0  # longest side of a thing alone on white
TUX_PAINT_PACKAGE = "tuxpaint-stamps-default"  # Debian, GPL-2: measured on, never trained on
# Folders of its stamps that hold drawings; some are left in the others.
NOT_PHOTOGRAPHS = ("cartoon", "symbols", "roadsigns", "flags")
WAYS: dict[str, Callable[[str], str]] = {
    "as in training": str,
    "third wording": wordings.reword,
    "color": wordings.to_american,
    "lower case": lambda text: text[0].lower() + text[1:],
    "no question mark": lambda text: text.rstrip("?."),
}
OBLONG = 1.5  # times as wide as high, or as high as wide, as most cameras see
OBLONG_TYPES = ("colour", "shape", "position", "relation")
WORDED_TYPES = ("colour", "shape", "size", "position", "yes/no", "count", "relation", "digit", "number", "background")


class Asker:
    """A checkpoint that is asked about drawn pictures and frames."""

    def __init__(self, model: str | Path):
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(model)

    def answer(self, shown: list, texts: list[str], **options) -> list[str]:
        """Answers to one question about each picture, or each list of frames."""
        kind = "video" if isinstance(shown[0], list) else "image"
        size = 1 if kind == "video" else 2 * BATCH_SIZE
        answers = []
        for start in range(0, len(shown), size):
            part = slice(start, start + size)
            prompts = [
                self.processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}],
                    add_generation_prompt=True,
                )
                for text in texts[part]
            ]
            media = {"images": shown[part]} if kind == "image" else {"videos": [np.stack(shown[start])]}
            extra = {} if kind == "image" else {"do_sample_frames": False}
            inputs = self.processor(text=prompts, **media, **extra, padding=True, return_tensors="pt")
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=24, **options)
            made = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers += [text.strip() for text in made]
        return answers


def count(answers: list[str], wanted: list[str], chance: float) -> dict:
    """As a row of results."""
    return {"right": sum(map(str.__eq__, answers, wanted)), "n": len(wanted), "chance": chance}


def portraits(library: Library) -> list[Thing]:
    """Every picture of the library, in the middle."""
    return [
        Thing(name, style, slug, CENTRE, CENTRE, PORTRAIT_SIZE)
        for name, artists in library.pictures.items()
        for pictures in artists.values()
        for style, slug in pictures
    ]


def name_portraits(asker: Asker, library: Library) -> dict:
    """Each thing alone on white: "What is this?"."""
    things = portraits(library)
    drawn = [draw_picture(PictureScene(things=[thing]), library) for thing in things]
    answers = asker.answer(drawn, ["What is this?"] * len(drawn))
    return count(answers, [thing.name for thing in things], CHANCE["name"])


def name_garments(asker: Asker, library: Library, number: int) -> dict:
    """The first so many of Fashion-MNIST's test split, white on black."""
    garments = [Garment("test", index) for index in range(min(number, len(library.garments["test"][1])))]
    drawn = [draw_picture(PictureScene(garment=garment), library) for garment in garments]
    wanted = [garment_name(garment, library) for garment in garments]
    return count(asker.answer(drawn, ["What garment is this?"] * len(drawn)), wanted, CHANCE["garment"])


def sample_about_things(kind: str, library: Library, rng: random.Random) -> tuple[PictureScene | PictureClip, Question]:
    """A new picture or clip with a question of this type."""
    while True:
        if kind == "garment":
            shown = sample_garment(rng, library, "test")
        elif kind in ("thing in a video", "thing direction", "thing order", "thing growth"):
            shown = sample_picture_clip(rng, library)
        else:
            shown = sample_things(rng, library, 1 if kind in ("name", "category") else rng.choice((1, 2, 2, 3)))
        is_clip = isinstance(shown, PictureClip)
        asked = about_picture_clip(shown, rng) if is_clip else about_picture(shown, library, rng)
        candidates = [question for question in asked if question.type == kind]
        if candidates:
            return shown, rng.choice(candidates)


def ask_about_scenes(asker: Asker, library: Library, per_type: int, seed: int, types: list[str]) -> dict[str, dict]:
    """New scenes and clips by type, questions as in training."""
    results = {}
    for kind in types:
        sampled = [sample_about_things(kind, library, random.Random(f"{seed} {kind} {i}")) for i in range(per_type)]
        drawn = [
            [np.asarray(draw_picture(frame, library)) for frame in shown.sampled_frames()]
            if isinstance(shown, PictureClip)
            else draw_picture(shown, library)
            for shown, _ in sampled
        ]
        answers = asker.answer(drawn, [question.text for _, question in sampled])
        results[kind] = count(answers, [question.answer for _, question in sampled], CHANCE[kind])
    return results


def ask_in_other_words(asker: Asker, per_type: int, seed: int) -> dict[str, dict]:
    """The old types' pictures with the question written in each way."""
    sampled = [
        sample_question(kind, "test", random.Random(f"words {seed} {kind} {i}"))
        for kind in WORDED_TYPES
        for i in range(per_type)
    ]
    drawn = [scenes.draw(shown) for shown, _ in sampled]
    wanted = [question.answer for _, question in sampled]
    chance = sum(questions.CHANCE[kind] for kind in WORDED_TYPES) / len(WORDED_TYPES)
    return {
        way: count(asker.answer(drawn, [change(question.text) for _, question in sampled]), wanted, chance)
        for way, change in WAYS.items()
    }


def extend(picture: Image.Image, ratio: float, is_tall: bool) -> Image.Image:
    """`ratio` times as long to both sides, or up and down; what is at the border goes on."""
    added = round(scenes.IMAGE_SIZE * (ratio - 1) / 2)
    sides = ((added, added), (0, 0)) if is_tall else ((0, 0), (added, added))
    return Image.fromarray(np.pad(np.asarray(picture), (*sides, (0, 0)), mode="edge"))


def ask_about_oblong(asker: Asker, libraries: dict[str, Library], per_type: int, seed: int) -> dict[str, dict]:
    """Wide and tall pictures in turns: names of things alone by artist, and old types."""
    rng = random.Random(f"oblong {seed}")
    asked = {}
    for artist, library in libraries.items():
        things = portraits(library)
        chosen = rng.sample(things, min(per_type, len(things)))
        asked[f"name, {artist}"] = (
            [(draw_picture(PictureScene(things=[thing]), library), "What is this?", thing.name) for thing in chosen],
            CHANCE["name"],
        )
    for kind in OBLONG_TYPES:
        sampled = [sample_question(kind, "test", random.Random(f"oblong {seed} {kind} {i}")) for i in range(per_type)]
        asked[kind] = [(scenes.draw(shown), q.text, q.answer) for shown, q in sampled], questions.CHANCE[kind]
    results = {}
    for kind, (rows, chance) in asked.items():
        pictures, texts, wanted = zip(*rows)
        shown = [extend(picture, OBLONG, is_tall=i % 2 == 1) for i, picture in enumerate(pictures)]
        results[kind] = count(asker.answer(shown, list(texts)), list(wanted), chance)
    return results


def load_tux_paint(cache_folder: Path) -> list[tuple[str, Image.Image]]:
    """Cut-out photographs whose description has exactly one of the names, with it, on white."""
    folder = cache_folder / TUX_PAINT_PACKAGE
    if not folder.exists():
        subprocess.run(["apt-get", "download", TUX_PAINT_PACKAGE], cwd=cache_folder, check=True, capture_output=True)
        subprocess.run(["dpkg-deb", "-x", next(cache_folder.glob(f"{TUX_PAINT_PACKAGE}*.deb")), folder], check=True)
    names = {word: name for name in load_names() for word in (name, f"{name}s")}
    found = []
    for file in sorted(folder.rglob("*.png")):
        text = file.with_suffix(".txt")
        if not text.exists() or any(part in file.parts for part in NOT_PHOTOGRAPHS):
            continue
        description = text.read_text(errors="replace").splitlines()[0].lower()
        named = {names[word] for word in re.findall(r"[a-z-]+", description) if word in names}
        if len(named) == 1:
            cutout = Image.fromarray(to_cutout(Image.open(file)))
            picture = Image.new("RGB", (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE), "white")
            cutout = cutout.resize((int(PORTRAIT_SIZE),) * 2, Image.Resampling.LANCZOS)
            picture.paste(cutout, ((scenes.IMAGE_SIZE - int(PORTRAIT_SIZE)) // 2,) * 2, cutout)
            found.append((named.pop(), picture))
    return found


def measure(asker: Asker, cache_folder: Path, per_type: int, seed: int, num_garments: int) -> dict[str, dict]:
    """`{section: {type: {"right": ..., "n": ..., "chance": ...}}}`."""
    known = Library.load(cache_folder, TRAINING_STYLES, ["test"])
    first, second = (Library.load(cache_folder, [style], ["test"]) for style in UNSEEN_STYLES)
    named = {
        f"artist never seen ({UNSEEN_STYLES[0]})": name_portraits(asker, first),
        f"artist never seen, black outlines ({UNSEEN_STYLES[1]})": name_portraits(asker, second),
        "artists of the training": name_portraits(asker, known),
        "garment, Fashion-MNIST's test split": name_garments(asker, known, num_garments),
    }
    photographs = load_tux_paint(cache_folder)
    answers = asker.answer([picture for _, picture in photographs], ["What is this?"] * len(photographs))
    named["beyond training: photograph of Tux Paint"] = count(
        answers, [name for name, _ in photographs], CHANCE["name"]
    )
    types = [kind for kind in CHANCE if kind != "garment"]
    return {
        "names": named,
        "scenes, artists of the training": ask_about_scenes(asker, known, per_type, seed, types),
        f"scenes, artist never seen ({UNSEEN_STYLES[0]})": ask_about_scenes(asker, first, per_type, seed, types),
        "drawn shapes, digits and numbers in other words": ask_in_other_words(asker, max(per_type // 4, 1), seed),
        f"pictures {OBLONG} times as wide as high, or as high as wide": ask_about_oblong(
            asker, {"artists of the training": known, f"artist never seen ({UNSEEN_STYLES[0]})": first}, per_type, seed
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "checkpoint"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    parser.add_argument("--per_type", type=int, default=200)
    parser.add_argument("--garments", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=9, help="as of evaluate.py")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asker = Asker(arguments.model)
    results = measure(asker, arguments.cache, arguments.per_type, arguments.seed, arguments.garments)
    for section, rows in results.items():
        print(f"\n{section}\n\n{to_table(rows)}")
    if arguments.json:
        measured = {"conditions": describe_conditions(), "per_type": arguments.per_type, "seed": arguments.seed}
        arguments.json.write_text(json.dumps(measured | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
