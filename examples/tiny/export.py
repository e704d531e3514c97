"""
Saves a trained model as it is shipped: float16 weights that load as float32.

    python examples/tiny/export.py --model runs/tiny/final --output examples/tiny/checkpoint
"""

import argparse
import json
from pathlib import Path

import torch

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


def export(model: Path, output: Path):
    """Checkpoint and processor; half the size, and `dtype="auto"` still gives float32, which CPUs compute in."""
    LlavaMiniForConditionalGeneration.from_pretrained(model, dtype=torch.float16).save_pretrained(output)
    LlavaMiniProcessor.from_pretrained(model).save_pretrained(output)
    config_file = output / "config.json"
    config = json.loads(config_file.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoint")
    arguments = parser.parse_args()
    export(arguments.model, arguments.output)


if __name__ == "__main__":
    main()
