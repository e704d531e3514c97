"""
Saves a trained model as it is shipped: float16 weights that load as float32, and a card with the measured numbers.

    python examples/tiny/export.py --model runs/tiny/final --output examples/tiny/checkpoint
    python examples/tiny/evaluate.py --per_type 200 --json examples/tiny/results.json
    python examples/tiny/evaluate_things.py --json examples/tiny/results_things.json
    python examples/tiny/export.py --card examples/tiny/results.json examples/tiny/results_things.json
"""

import argparse
import json
from pathlib import Path

import torch
from evaluate import to_table
from picture_names import load_names
from scenes import RADII
from transformers import PreTrainedModel, ProcessorMixin

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


# Types below are not claimed.
CLAIM_BOUND = 0.8


def export(model: PreTrainedModel, processor: ProcessorMixin, output: Path):
    """Checkpoint and processor; half the size, and `dtype="auto"` still gives float32, which CPUs compute in."""
    model.to(torch.float16).save_pretrained(output)
    processor.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    config_file = output / "config.json"
    config = json.loads(config_file.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
        part.pop("_name_or_path", None)  # where the tower lay on the machine that trained it
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def describe_rest(rest: dict[str, dict]) -> str:
    """What the card says of types that are not claimed."""
    if not rest:
        return f"No type of question that was measured is below {CLAIM_BOUND:.2f}."
    return f"Below {CLAIM_BOUND:.2f}, measured in the same way; do not rely on these:\n\n{to_table(rest)}"


def is_claimed(result: dict) -> bool:
    """Whether a card may say that the model does this."""
    return result["right"] / result["n"] >= CLAIM_BOUND


def list_sections(sections: dict[str, dict[str, dict]], claimed: bool) -> str:
    """The tables of what is claimed, or of what is not."""
    tables = []
    for section, rows in sections.items():
        kept = {kind: result for kind, result in rows.items() if is_claimed(result) == claimed}
        if kept:
            tables.append(f"### {section.capitalize()}\n\n{to_table(kept)}")
    return "\n\n".join(tables)


def describe_things(things: dict) -> dict[str, str | int]:
    """What the card says of things, by its template's fields."""
    return {
        "names": len(load_names()),
        "things": list_sections(things["results"], claimed=True),
        "failing_things": list_sections(things["results"], claimed=False),
        "bound": CLAIM_BOUND,
        "things_per_type": things["per_type"],
        "things_seed": things["seed"],
    }


def write_card(checkpoint: Path, measured: dict, things: dict):
    """The model card, its numbers from the checkpoint and from what the two evaluate scripts measured."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    config, results = model.config, measured["results"]
    claims, rest = ({}, {})
    for kind, result in results.items():
        (claims if is_claimed(result) else rest)[kind] = result
    card = (Path(__file__).parent / "card_template.md").read_text().format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        megabytes=(checkpoint / "model.safetensors").stat().st_size / 1e6,
        vocabulary=config.text_config.vocab_size,
        vision_layers=config.num_vision_layers,
        compressor_size=config.compressor_size,
        resolution_ratio=config.resolution_ratio,
        prefusion=config.num_prefusion_layers,
        llm=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        conditions=measured["conditions"],
        per_type=measured["per_type"],
        seed=measured["seed"],
        claims=to_table(claims),
        rest=describe_rest(rest),
        **describe_things(things),
        radii=" or ".join(f"{low:g} to {high:g} ({name})" for name, (low, high) in RADII.items()),
    )  # fmt: skip
    (checkpoint / "README.md").write_text(card)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a finished phase of train_tiny.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument(
        "--card",
        type=Path,
        nargs=2,
        metavar=("SHAPES", "THINGS"),
        help="what evaluate.py and evaluate_things.py wrote with --json",
    )
    arguments = parser.parse_args()
    if arguments.model:
        model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float16)
        export(model, LlavaMiniProcessor.from_pretrained(arguments.model), arguments.output)
    if arguments.card:
        write_card(arguments.output, *(json.loads(file.read_text()) for file in arguments.card))


if __name__ == "__main__":
    main()
