"""
The paper's analysis (section 3.2) on two small models: the LLaVA-1.5 twin, whose language model reads all 36 patches,
and the LLaVA-Mini, which reads them in pre-fusion. Writes figures like the paper's 2, 3 and 5, the numbers and a table.

    python examples/tiny/analyse.py --output examples/tiny/analysis
"""

import argparse
import json
import platform
import random
import time
from pathlib import Path

import scenes
import torch
import transformers
from make_data import sample_question
from questions import CHANCE
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mini  # noqa: F401 registers the Auto classes
from llava_mini.analysis import (
    KINDS,
    AttentionByLayer,
    Question,
    Score,
    find_layers,
    measure_accuracy,
    measure_attention,
    plot_accuracy,
    plot_attention,
    plot_entropy,
)


HERE = Path(__file__).parent
# What the twin was trained on. Captions are looked at for their longer answers, and not asked for in figure 5, where
# guessing has a rate.
TYPES = ("background", "colour", "shape", "size", "position", "yes/no", "count", "relation")
LONG = "caption"
BATCH_SIZE = 50
LONGEST_ANSWER = 8  # tokens; these types are answered in fewer
ALONE, ONWARDS, UP_TO = "in this layer alone", "from this layer on", "up to this layer"


def make_questions(kind: str, count: int, seed: int) -> list[Question]:
    """New pictures, held-out where there is such."""
    made = [sample_question(kind, "test", random.Random(f"analysis {seed} {kind} {i}")) for i in range(count)]
    return [Question(scenes.draw(scene), question.text, question.answer) for scene, question in made]


def choose_layers(names: list[str]) -> dict[str, list[str]]:
    """By line and layer of figure 5, which layers are left out."""
    return {
        **{f"{ALONE}: {name}": [name] for name in names},
        **{f"{ONWARDS}: {name}": names[i:] for i, name in enumerate(names)},
        **{f"{UP_TO}: {name}": names[: i + 1] for i, name in enumerate(names)},
    }


def analyse(folder: Path, per_type: int, seed: int) -> tuple[AttentionByLayer, dict[str, dict[str, Score]]]:
    """Attention over the model's own answers, and scores by type and by what is left out."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    asked = [question for kind in (*TYPES, LONG) for question in make_questions(kind, per_type // 4, seed + 1)]
    attention = measure_attention(model, processor, [question[:2] for question in asked])
    left_out = choose_layers([layer.name for layer in find_layers(model)])
    options = {"batch_size": BATCH_SIZE, "max_new_tokens": LONGEST_ANSWER}
    scores = {
        kind: measure_accuracy(model, processor, make_questions(kind, per_type, seed), left_out, **options)
        for kind in TYPES
    }
    return attention, scores


def add_up(scores: dict[str, dict[str, Score]]) -> dict[str, Score]:
    """Over all types."""
    names = next(iter(scores.values()))
    own = {name: [by_name[name] for by_name in scores.values()] for name in names}
    return {name: Score(sum(s.right for s in parts), sum(s.n for s in parts)) for name, parts in own.items()}


def to_tables(name: str, attention: AttentionByLayer, scores: dict[str, dict[str, Score]]) -> str:
    """Markdown: a row a layer, then a row a type with the layers from which on vision is left out."""
    total = add_up(scores)
    columns = ["layer"]
    columns += [f"{a} to vision" for a in KINDS] + [f"entropy, {a} to vision" for a in (KINDS[0], KINDS[2])]
    columns += [f"right without vision {line}" for line in (ALONE, ONWARDS, UP_TO)]
    lines = [f"### {name}", "", f"As it is: {total['nothing'].accuracy:.3f} right (n = {total['nothing'].n}).", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for i, layer in enumerate(attention.layers):
        shares = [*attention.attention[i, :, 1], *attention.entropy[i, ::2, 1]]
        cells = ["-" if value != value else f"{float(value):.2f}" for value in shares]
        cells += [f"{total[f'{line}: {layer}'].accuracy:.3f}" for line in (ALONE, ONWARDS, UP_TO)]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    lines += ["", "Right answers without vision from a layer on:", ""]
    lines += ["| type | as it is | " + " | ".join(attention.layers) + " | guessing |"]
    lines += ["|---" * (len(attention.layers) + 3) + "|"]
    for kind, own in scores.items():
        cells = [own["nothing"].accuracy, *(own[f"{ONWARDS}: {layer}"].accuracy for layer in attention.layers)]
        lines.append(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in cells) + f" | {CHANCE[kind]:.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, default=HERE / "twin")
    parser.add_argument("--mini", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per_type", type=int, default=100, help="questions; attention is measured over a quarter")
    parser.add_argument("--seed", type=int, default=31, help="of the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    folders = {"LLaVA twin": arguments.twin, "LLaVA-Mini": arguments.mini}
    found = {name: analyse(folder, arguments.per_type, arguments.seed) for name, folder in folders.items()}
    attention = {name: own for name, (own, _) in found.items()}
    plot_attention(attention).save(arguments.output / "attention.png")
    entropy = plot_entropy(attention, "dotted: as evenly as can be over the vision tokens")
    entropy.save(arguments.output / "entropy.png")
    guessing = sum(CHANCE[kind] for kind in TYPES) / len(TYPES)
    for (name, (own, scores)), file in zip(found.items(), ("accuracy_twin.png", "accuracy_mini.png")):
        total = add_up(scores)
        lines = {line: [total[f"{line}: {layer}"] for layer in own.layers] for line in (ALONE, ONWARDS, UP_TO)}
        title = f"{name} without vision tokens ..."
        figure = plot_accuracy(lines, own.layers, total["nothing"], guessing, title)
        figure.save(arguments.output / file)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    conditions = f"float32, {platform.machine()} CPU, 1 thread, {versions}; seed {arguments.seed} of the pictures"
    tables = [to_tables(name, own, scores) for name, (own, scores) in found.items()]
    text = "\n\n".join([f"{conditions}. Guessing: {guessing:.2f} of all types. Entropies in nats.", *tables]) + "\n"
    (arguments.output / "table.md").write_text(text)
    saved = {
        name: {
            "attention": own.to_dict(),
            "right": {kind: {key: score.right for key, score in by.items()} for kind, by in scores.items()},
        }
        for name, (own, scores) in found.items()
    }
    saved |= {"conditions": conditions, "n a type": arguments.per_type}
    (arguments.output / "results.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(text)
    print(f"{time.time() - started:.0f} s in all")


if __name__ == "__main__":
    main()
