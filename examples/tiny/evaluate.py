"""
Asks a checkpoint about held-out pictures and clips through `pipeline()`, greedily; prints the exact matches by type.

    python examples/tiny/evaluate.py --model examples/tiny/checkpoint --per_type 200
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch
import transformers
from make_data import make_records
from questions import CHANCE
from transformers import Pipeline, pipeline

import llava_mini  # noqa: F401 registers the Auto classes


BATCH_SIZE = 16


def to_chat(record: dict, folder: Path) -> list[dict]:
    """A record's picture or clip and question as the pipeline takes them."""
    kind = "image" if "image" in record else "video"
    text = record["conversations"][0]["value"].split("\n", 1)[1]
    content = [{"type": kind, "path": str(folder / record[kind])}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def answer_all(pipe: Pipeline, records: list[dict], folder: Path) -> list[str]:
    """The generated answers, without what was asked."""
    chats = [to_chat(record, folder) for record in records]
    # Videos one at a time: clips of a batch differ in length, and padding them costs more than the batch saves.
    batch_size = 1 if "video" in records[0] else BATCH_SIZE
    made = pipe(text=chats, batch_size=batch_size, return_full_text=False, generate_kwargs={"do_sample": False})
    return [(item[0] if isinstance(item, list) else item)["generated_text"].strip() for item in made]


def evaluate(model: str | Path, per_type: int, seed: int, types: list[str]) -> dict[str, dict]:
    """`{type: {"right": ..., "n": ..., "chance": ...}}` on the test split."""
    pipe = pipeline("image-text-to-text", model=str(model), dtype=torch.float32)
    results = {}
    for kind in types:
        with tempfile.TemporaryDirectory() as folder:
            records = make_records(Path(folder), "test", per_type, seed, [kind])
            answers = answer_all(pipe, records, Path(folder))
        right = sum(record["conversations"][1]["value"] == given for record, given in zip(records, answers))
        results[kind] = {"right": right, "n": per_type, "chance": CHANCE[kind]}
    return results


def to_table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = ["| question type | exact match | n | guessing |", "|---|---|---|---|"]
    for kind, result in results.items():
        lines.append(f"| {kind} | {result['right'] / result['n']:.3f} | {result['n']} | {result['chance']:.2f} |")
    return "\n".join(lines)


def describe_conditions() -> str:
    """What the numbers were measured with."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"float32, {platform.machine()} CPU, 1 thread, {versions}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "checkpoint"))
    parser.add_argument("--per_type", type=int, default=200)
    parser.add_argument("--types", nargs="*", choices=list(CHANCE), default=list(CHANCE))
    parser.add_argument("--seed", type=int, default=9, help="9 is the set of the card: looked at after training")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    results = evaluate(arguments.model, arguments.per_type, arguments.seed, arguments.types)
    print(to_table(results))
    conditions = describe_conditions()
    print(f"\n{conditions}; {time.time() - started:.0f} s in all")
    if arguments.json:
        measured = {
            "conditions": conditions,
            "per_type": arguments.per_type,
            "seed": arguments.seed,
            "results": results,
        }
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
