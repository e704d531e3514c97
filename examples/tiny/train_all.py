"""
The small model from nothing to a checkpoint with a card: a tower of drawn pictures, the phases of recipe.json about
them, the tower taught the pictures of things, the phases about these, export, measurement. About four and a half
hours on two CPU cores; what is finished is not done again. Fetches the pictures of things, see `pictures.py`.

    python examples/tiny/train_all.py --output runs/tiny
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pictures import DEFAULT_CACHE
from train_tiny import split_recipe


HERE = Path(__file__).parent


def run(script: str, *arguments: str | Path):
    """One of the scripts beside this one."""
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)


def train_tower(script: str, output: Path, *arguments: str | Path):
    """A tower, unless it is finished."""
    finished = output.with_name(f"{output.name}_finished")
    if not finished.exists():
        run(script, "--output", output, *arguments)
        finished.touch()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.json")
    parser.add_argument("--tower_steps", default="3000")
    parser.add_argument("--things_steps", default="13000", help="of the tower with pictures of things")
    parser.add_argument("--per_type", default="200", help="questions of each type that are asked in the end")
    parser.add_argument("--seed", default="0")
    arguments = parser.parse_args()
    phases, checkpoint = (arguments.output / name for name in ("phases", "checkpoint"))
    towers = arguments.output / "tower", arguments.output / "tower_of_things"
    recipe = ["--recipe", arguments.recipe, "--seed", arguments.seed, "--output", phases]
    cache = ["--cache", arguments.cache]
    of_shapes, of_things = split_recipe(json.loads(arguments.recipe.read_text()))
    train_tower("pretrain_tower.py", towers[0], "--steps", arguments.tower_steps, "--seed", arguments.seed)
    run("train_tiny.py", "--tower", towers[0], *recipe)
    start = phases / of_shapes[-1]["name"]
    options = ["--model", start, "--steps", arguments.things_steps, "--seed", arguments.seed]
    train_tower("teach_tower.py", towers[1], *options, *cache)
    run("train_tiny.py", "--grow", start, "--tower", towers[1], *recipe, *cache)
    run("export.py", "--model", phases / of_things[-1]["name"], "--output", checkpoint)
    results = [arguments.output / f"results{about}.json" for about in ("", "_things")]
    measured = ["--model", checkpoint, "--per_type", arguments.per_type]
    run("evaluate.py", *measured, "--json", results[0])
    run("evaluate_things.py", *measured, *cache, "--json", results[1])
    run("export.py", "--output", checkpoint, "--card", *results)


if __name__ == "__main__":
    main()
