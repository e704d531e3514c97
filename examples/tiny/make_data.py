"""
Writes pictures and clips with their questions as a LLaVA JSON file and media beside it. Deterministic by seed.

    python examples/tiny/make_data.py --output data/tiny --split test --per_type 100
"""

import argparse
import json
import random
from pathlib import Path

import av
import numpy as np
import questions
import scenes
from PIL import Image
from questions import CHANCE, MEASURED_ONLY, Question


# Pictures that a type of question is asked about, by number of shapes.
SHAPES = {
    "background": (1, 2, 3),
    "caption": (1, 2),
    "count": (1, 2, 3),
    "relation": (2, 3),
    "yes/no": (1, 2, 3),
    "caption of three": (3,),
}
DEFAULT_SHAPES = (1, 2)


def sample_question(kind: str, split: str, rng: random.Random) -> tuple[scenes.Scene | scenes.Clip, Question]:
    """A new picture or clip with a question of this type about it."""
    while True:
        if kind.startswith("video"):
            shown = scenes.sample_clip(rng)
            candidates = [q for q in questions.about_clip(shown, rng) if q.type == kind]
        elif kind == "unseen pair":
            shown = scenes.sample_shapes(rng, 1, pairs="unseen")
            wanted = rng.choice(["colour", "shape"])
            # A question must not name the other half of the pair.
            candidates = [
                Question(kind, q.text, q.answer)
                for q in questions.about_scene(shown, rng)
                if q.type == wanted and not any(word in q.text for word in (*scenes.COLOURS, *scenes.KINDS))
            ]
        else:
            if kind == "digit":
                shown = scenes.sample_digit(rng, split)
            elif kind in ("number", "number colour"):
                shown = scenes.sample_number(rng)
            else:
                shown = scenes.sample_shapes(rng, rng.choice(SHAPES.get(kind, DEFAULT_SHAPES)))
            if kind == "absent shape":
                return shown, questions.about_what_is_absent(shown, rng)
            asked = "caption" if kind == "caption of three" else kind
            candidates = [
                Question(kind, q.text, q.answer) for q in questions.about_scene(shown, rng) if q.type == asked
            ]
        if candidates:
            return shown, rng.choice(candidates)


def write_video(path: Path, frames: list[Image.Image], fps: int = scenes.CLIP_FPS):
    """H.264, nearly without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8"})
        stream.width, stream.height = frames[0].size
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


def write_media(shown: scenes.Scene | scenes.Clip, stem: Path) -> tuple[str, Path]:
    """Saves a picture or clip; returns its kind ("image", "video") and its file."""
    if isinstance(shown, scenes.Scene):
        file = stem.with_suffix(".png")
        scenes.draw(shown).save(file)
        return "image", file
    file = stem.with_suffix(".mp4")
    write_video(file, [scenes.draw(frame) for frame in shown.all_frames()])
    return "video", file


def make_records(folder: Path, split: str, per_type: int, seed: int, types: list[str]) -> list[dict]:
    """LLaVA records with a `type`, their media written into `folder`."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    records = []
    for kind in types:
        for i in range(per_type):
            shown, question = sample_question(kind, split, random.Random(f"{split} {seed} {kind} {i}"))
            name = f"{kind.replace(' ', '_').replace('/', '')}_{i:05}"
            medium, file = write_media(shown, folder / "media" / name)
            turns = [("human", f"<{medium}>\n{question.text}"), ("gpt", question.answer)]
            records.append(
                {
                    "id": name,
                    "type": kind,
                    medium: str(file.relative_to(folder)),
                    "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
                }
            )
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "test"], default="train")
    parser.add_argument("--per_type", type=int, default=100)
    parser.add_argument("--types", nargs="*", choices=list(CHANCE), default=list(CHANCE))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    types = [kind for kind in arguments.types if arguments.split == "test" or kind not in MEASURED_ONLY]
    records = make_records(arguments.output, arguments.split, arguments.per_type, arguments.seed, types)
    (arguments.output / "data.json").write_text(json.dumps(records, indent=1))
    print(f"{len(records)} records in {arguments.output / 'data.json'}")


if __name__ == "__main__":
    main()
