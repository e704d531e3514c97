"""
Where a model's answers come from: accuracy by number of shapes, with text that reads the patches and without it, when
only the vision token is left. Teacher-forced on new pictures, unlike evaluate.py.

    python examples/tiny/probe.py --model examples/tiny/checkpoint
"""

import argparse
from collections import defaultdict
from itertools import islice
from pathlib import Path

import torch
from packing import Mix, PackedBatches
from train_tiny import TinyTrainer

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


TYPES = {"background": 0.1, "colour": 1, "shape": 1, "size": 1, "position": 4, "yes/no": 2, "count": 0.3, "relation": 4}


class Probe(TinyTrainer):
    """The trainer's forward pass, counting instead of averaging."""

    def __init__(self):
        self.answers: dict[str, list[bool]] = defaultdict(list)

    def record(self, types: list[str], correct: list[bool]):
        for kind, is_right in zip(types, correct):
            self.answers[kind.removesuffix(", token only")].append(is_right)


@torch.no_grad()
def probe(
    model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, mix: Mix, batches: int
) -> dict[str, list[bool]]:
    """Right or wrong for every answer, by type."""
    counter = Probe()
    for batch in islice(PackedBatches(processor, mix, "probe"), batches):
        counter.compute_loss(model, batch)
    return dict(sorted(counter.answers.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--batches", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = LlavaMiniProcessor.from_pretrained(arguments.model)
    print("| shapes | text reads | " + " | ".join(TYPES) + " |\n" + "|---" * (len(TYPES) + 2) + "|")
    for shapes in ("1", "2"):
        for is_blind in (False, True):
            mix = Mix({shapes: 1.0}, TYPES, blind=float(is_blind))
            answers = probe(model, processor, mix, arguments.batches)
            cells = [
                f"{sum(answers[kind]) / len(answers[kind]):.2f} (n = {len(answers[kind])})" if kind in answers else "-"
                for kind in TYPES
            ]
            print(f"| {shapes} | {'the token' if is_blind else 'the patches'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
