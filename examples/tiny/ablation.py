"""
The paper's claim in miniature: the small model with and without pre-fusion at equal size, and with 1, 4 and 16 vision
tokens (C = 1, 2, 4), each from several seeds, on shapes alone; and what is asked about it: nothing in the vision token,
all in pre-fusion; pre-fusion that starts from the language model's layers. Writes a table and a plot; what is in the
table is not run again.

    python examples/tiny/ablation.py --tower runs/tower --output examples/tiny/ablation
    python examples/tiny/ablation.py --tower runs/tower --output runs/starts --runs runs/starts_models --set starts \\
        --trained runs/tiny/phases/"sizes and counts"
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from build import build_model, build_processor
from evaluate import evaluate
from train_tiny import run_phase

from llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.front_llava_mini import LlavaMiniFront


sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from model_setup import initialise_prefusion  # noqa: E402


# Pre-fusion layers and language model layers; equally many parameters in all.
TOKENS = {
    "no pre-fusion, C = 1": {"compressor_size": 1, "num_prefusion_layers": 0, "num_llm_layers": 5},
    "no pre-fusion, C = 2": {"compressor_size": 2, "num_prefusion_layers": 0, "num_llm_layers": 5},
    "no pre-fusion, C = 4": {"compressor_size": 4, "num_prefusion_layers": 0, "num_llm_layers": 5},
    "pre-fusion, C = 1": {"compressor_size": 1, "num_prefusion_layers": 3, "num_llm_layers": 2},
    "pre-fusion, C = 2": {"compressor_size": 2, "num_prefusion_layers": 3, "num_llm_layers": 2},
    "pre-fusion, C = 4": {"compressor_size": 4, "num_prefusion_layers": 3, "num_llm_layers": 2},
}
# `blank`: the vision token is zeros, so that all that is seen comes through pre-fusion. `start`: the language model is
# the one that `--trained` learned, as the paper's is Vicuna, and pre-fusion starts from its layers or at random.
STARTS = {
    "pre-fusion, C = 1": TOKENS["pre-fusion, C = 1"],
    "pre-fusion, blank token": {"compressor_size": 1, "num_prefusion_layers": 3, "num_llm_layers": 2, "blank": True},
    "trained language model, pre-fusion at random": {"num_prefusion_layers": 2, "num_llm_layers": 2, "start": "random"},
    "trained language model, pre-fusion from it": {"num_prefusion_layers": 2, "num_llm_layers": 2, "start": "llm"},
}
SETS = {"tokens": TOKENS, "starts": STARTS}
VARIANTS = TOKENS | STARTS
TYPES = ["background", "colour", "shape", "size", "position", "count"]
MIX = {"scenes": {"1": 1, "2": 2}, "types": {"relation": 0.0, "yes/no": 0.0, "position": 2.0}, "blind": 0.0}


def run_variant(
    name: str, seed: int, tower: Path, folder: Path, steps: int, per_type: int, trained: Path | None
) -> dict[str, float]:
    """Trains one variant and returns its exact match by type."""
    torch.manual_seed(seed)
    options = dict(VARIANTS[name])
    processor = build_processor(options.pop("compressor_size", 1))
    start, blank = options.pop("start", None), options.pop("blank", False)
    model = build_model(processor, tower, **options)
    if start is not None:
        take_language_model(model, processor, trained)
        initialise_prefusion(model, start)
    phase = {"name": "ablation", "steps": steps, "lr": 2e-3, "muon_lr": 0.02, "mix": MIX}
    output = folder / f"{name} {seed}".replace(" ", "_").replace(",", "").replace("=", "")
    with blank_tokens() if blank else nullcontext():
        run_phase(model, processor, phase, output, seed)
        results = evaluate(output, per_type, seed=2, types=TYPES)
    return {kind: result["right"] / result["n"] for kind, result in results.items()}


@contextmanager
def blank_tokens() -> Iterator[None]:
    """Vision tokens are zeros; what the text reads in pre-fusion is as ever."""
    encode = LlavaMiniFront.encode_features

    def encode_blank(self, *args, **kwargs):
        chunk = encode(self, *args, **kwargs)
        return replace(chunk, tokens=torch.zeros_like(chunk.tokens))

    with patch.object(LlavaMiniFront, "encode_features", encode_blank):
        yield


def take_language_model(model: LlavaMiniForConditionalGeneration, processor, checkpoint: Path):
    """The language model, embeddings and head of a checkpoint with the same vocabulary."""
    trained = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    if any(processor.tokenizer.convert_tokens_to_ids(token) != index for token, index in vocabulary.items()):
        raise ValueError(
            f"{checkpoint} has another vocabulary than build.py makes: give --trained a phase of drawn pictures."
        )
    model.model.language_model.load_state_dict(trained.model.language_model.state_dict())
    model.lm_head.load_state_dict(trained.lm_head.state_dict())


def to_table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Mean over seeds, with the lowest and the highest."""
    lines = ["| variant | seeds | " + " | ".join(TYPES) + " |", "|---" * (len(TYPES) + 2) + "|"]
    for name, runs in scores.items():
        cells = []
        for kind in TYPES:
            values = [run[kind] for run in runs]
            cells.append(f"{sum(values) / len(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(scores: dict[str, list[dict[str, float]]], path: Path):
    """Every seed as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, (name, runs) in enumerate(scores.items()):
        for run in runs:
            places = [j + (i - len(scores) / 2) * 0.1 for j in range(len(TYPES))]
            label = name if run is runs[0] else None
            axis.plot(places, [run[kind] for kind in TYPES], "o", color=f"C{i}", label=label, markersize=4)
    axis.set_xticks(range(len(TYPES)), TYPES)
    axis.set_ylabel("exact match")
    axis.legend(fontsize=7)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the trained models go")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per_type", type=int, default=100)
    parser.add_argument("--set", choices=list(SETS), default="tokens", help="which variants")
    parser.add_argument("--trained", type=Path, help="the language model of `starts`: a phase of drawn pictures")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="instead of a set")
    arguments = parser.parse_args()
    variants = arguments.variants or list(SETS[arguments.set])
    if arguments.trained is None and any("start" in VARIANTS[name] for name in variants):
        parser.error("--trained is needed: whose language model these variants start from")
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    saved = arguments.output / "scores.json"
    settings = {"steps": arguments.steps, "per_type": arguments.per_type}
    made = json.loads(saved.read_text()) if saved.exists() else {**settings, "scores": {}}
    if any(made[name] != value for name, value in settings.items()):
        raise ValueError(
            f"{saved} was made with {made['steps']} steps and {made['per_type']} questions a type: go on with these, "
            "or give another --output and --runs."
        )
    scores: dict[str, list[dict[str, float]]] = made["scores"]
    # All variants of a seed before the next one, so that an interrupted run still compares equals.
    for seed in range(arguments.seeds):
        for name in variants:
            if len(scores.get(name, [])) > seed:
                continue
            where = (arguments.tower, arguments.runs, arguments.steps, arguments.per_type, arguments.trained)
            scores.setdefault(name, []).append(run_variant(name, seed, *where))
            saved.write_text(json.dumps(made, indent=1) + "\n")
    (arguments.output / "table.md").write_text(to_table(scores) + "\n")
    print(to_table(scores))
    plot(scores, arguments.output / "scores.png")


if __name__ == "__main__":
    main()
