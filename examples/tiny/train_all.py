"""
The small model from nothing to a checkpoint with a card: tower, all phases of recipe.json, export, measurement. Nearly
two hours on one CPU core; what is finished is not done again.

    python examples/tiny/train_all.py --output runs/tiny
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


HERE = Path(__file__).parent


def run(script: str, *arguments: str | Path):
    """One of the scripts beside this one."""
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.json")
    parser.add_argument("--tower_steps", default="3000")
    parser.add_argument("--per_type", default="200", help="questions of each type that are asked in the end")
    parser.add_argument("--seed", default="0")
    arguments = parser.parse_args()
    tower, phases, checkpoint = (arguments.output / name for name in ("tower", "phases", "checkpoint"))
    if not (arguments.output / "tower_finished").exists():
        run("pretrain_tower.py", "--output", tower, "--steps", arguments.tower_steps, "--seed", arguments.seed)
        (arguments.output / "tower_finished").touch()
    recipe = ["--recipe", arguments.recipe, "--seed", arguments.seed]
    run("train_tiny.py", "--tower", tower, "--output", phases, *recipe)
    last = json.loads(arguments.recipe.read_text())[-1]["name"]
    run("export.py", "--model", phases / last, "--output", checkpoint)
    measurement = ["--per_type", arguments.per_type, "--json", arguments.output / "results.json"]
    run("evaluate.py", "--model", checkpoint, *measurement)
    run("export.py", "--output", checkpoint, "--card", arguments.output / "results.json")


if __name__ == "__main__":
    main()
