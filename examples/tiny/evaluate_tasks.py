"""
The small model through lmms-eval (`pip install -e ".[eval]"`): draws held-out pictures and clips, writes them as tasks
(questions in JSON with picture files, in parquet with the pictures inside, clips), and evaluates on them.

    python examples/tiny/evaluate_tasks.py --output runs/evaluate_tasks --per_type 20
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
from evaluate import to_chat
from make_data import make_records
from questions import CHANCE


TASKS = Path(__file__).parent / "evaluation_tasks"
CHOICES = ["red", "green", "blue", "yellow", "black", "purple"]


def write_tasks(folder: Path, per_type: int, seed: int, types: list[str]) -> dict[str, list[str]]:
    """Tasks and their data; returns the types of questions that each task asks."""
    shutil.copytree(TASKS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    data = folder / "data"
    records = make_records(data, "test", per_type, seed, types)
    rows = [to_row(record, data) for record in records]
    pictures = [row for row, record in zip(rows, records) if "image" in record]
    clips = [row for row, record in zip(rows, records) if "video" in record]
    # Every other type, so that both files have something.
    names = list(dict.fromkeys(row["type"] for row in pictures))
    parts = {
        "json": [row for row in pictures if names.index(row["type"]) % 2 == 0],
        "parquet": [row for row in pictures if names.index(row["type"]) % 2 == 1],
        "video": clips,
    }
    parts["choice"] = [row | {"choices": CHOICES} for row in pictures if row["answer"] in CHOICES]
    for name in ("json", "video"):
        (data / f"{name}.json").write_text(json.dumps(parts[name]))
    for name in ("parquet", "choice"):
        if parts[name]:
            table = datasets.Dataset.from_list([row | {"picture": str(data / row["path"])} for row in parts[name]])
            table.cast_column("picture", datasets.Image()).to_parquet(data / f"{name}.parquet")
    return {f"tiny_{name}": list(dict.fromkeys(row["type"] for row in rows)) for name, rows in parts.items() if rows}


def to_row(record: dict, folder: Path) -> dict:
    """A LLaVA record as a row of a task."""
    part, text = to_chat(record, folder)[0]["content"]
    return {
        "id": record["id"],
        "type": record["type"],
        "path": str(Path(part["path"]).relative_to(folder)),
        "question": text["text"],
        "answer": record["conversations"][1]["value"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "checkpoint"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per_type", type=int, default=20)
    parser.add_argument("--types", nargs="*", choices=list(CHANCE), default=list(CHANCE))
    parser.add_argument("--seed", type=int, default=6)
    arguments = parser.parse_args()
    tasks = write_tasks(arguments.output / "tasks", arguments.per_type, arguments.seed, arguments.types)
    names = ",".join(name for name in tasks if name != "tiny_choice")  # which --force_simple runs
    command = ["evaluate", "--model", arguments.model, "--benchmarks", names, "--batch-size", "16"]
    command += ["--include-path", str(arguments.output / "tasks"), "--output", str(arguments.output / "results")]
    print(shlex.join(["llava-mini", *command]))
    sys.exit(subprocess.run([sys.executable, "-m", "llava_mini.cli", *command]).returncode)


if __name__ == "__main__":
    main()
