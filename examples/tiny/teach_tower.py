"""
Teaches a trained tower the pictures of things: it is grown (`grow.py`) and goes on from per-patch labels of what each
patch shows, names, categories, colours and garments, half of the time on the old drawn pictures, whose features are
held where the smaller tower put them.

    python examples/tiny/teach_tower.py --model runs/tiny/phases/"sizes and counts" --output runs/tower_of_things
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import picture_scenes
import pretrain_tower
import scenes
import torch
from colours import COLOUR_WORDS
from grow import grow_tower
from look_up import covered_patches
from muon import MuonWithAdamW, split_parameters
from picture_scenes import Library, PictureScene
from pictures import DEFAULT_CACHE, GARMENTS, TRAINING_STYLES
from pretrain_tower import GRID, IGNORED, PATCH_CENTRES, PLACES, PatchHeads, to_pixels
from torch import nn
from transformers import CLIPVisionModel

from llava_mini import LlavaMiniForConditionalGeneration


# Of each batch; the rest are scenes of things.
SHARES = {"old": 0.28, "garment": 0.2}
THINGS = {1: 5, 2: 3, 3: 2}  # weights of how many there are
SMOOTHING = 0.1  # of names: a few hundred pictures of each artist are learned by heart otherwise
NAME_WEIGHT = 3.0
HELD_WEIGHT = 4.0  # of how far old pictures' features are from where they were, in their own variance


def head_sizes(library: Library) -> dict[str, int]:
    """Classes of each per-patch label of pictures; the first of each is "nothing there"."""
    return {
        "name": 1 + len(library.names),
        "category": 1 + len(library.members),
        "hue": 1 + len(COLOUR_WORDS),
        "garment": 1 + len(GARMENTS),
        "centre": 2,
        "column": 1 + PLACES,
        "row": 1 + PLACES,
    }


def label_picture(scene: PictureScene, library: Library) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Class of every patch for each head, and the centre of what it shows, as `pretrain_tower.label_patches`."""
    labels = {name: np.zeros(GRID * GRID, dtype=np.int64) for name in head_sizes(library)}
    positions = np.full((GRID * GRID, 2), np.nan, dtype=np.float32)
    if scene.garment is not None:
        labels["garment"][:] = 1 + library.garments[scene.garment.split][1][scene.garment.index]
        for name in ("centre", "column", "row"):
            labels[name][:] = IGNORED
    categories = list(library.members)
    for thing in scene.things:
        inside = covered_patches(thing)
        nearest = np.abs(PATCH_CENTRES - (thing.x, thing.y)).sum(1).argmin()
        colour = picture_scenes.colour_of(thing, library)
        column, row = (min(int(PLACES * value / scenes.IMAGE_SIZE), PLACES - 1) for value in (thing.x, thing.y))
        classes = {
            "name": 1 + library.names.index(thing.name),
            "category": 1 + categories.index(library.category[thing.name]),
            "hue": IGNORED if colour is None else 1 + COLOUR_WORDS.index(colour),
            "column": 1 + column,
            "row": 1 + row,
        }
        for name, value in classes.items():
            labels[name][inside] = value
        labels["centre"][nearest] = 1
        positions[inside] = (thing.x / scenes.IMAGE_SIZE, thing.y / scenes.IMAGE_SIZE)
    return labels, positions


def sample_picture(rng: random.Random, library: Library, is_garment: bool) -> PictureScene:
    """A garment, a still, or a frame of a clip: things of other sizes."""
    if is_garment:
        return picture_scenes.sample_garment(rng, library)
    if rng.random() < 0.08:
        return picture_scenes.sample_picture_clip(rng, library).at(rng.random())
    return picture_scenes.sample_things(rng, library, rng.choices(list(THINGS), list(THINGS.values()))[0])


def make_picture_batch(rng: random.Random, library: Library, size: int, num_garments: int) -> tuple:
    """Pixels, labels and positions of new pictures, as `pretrain_tower.make_batch`."""
    sampled = [sample_picture(rng, library, i < num_garments) for i in range(size)]
    pixels = to_pixels(np.stack([np.asarray(picture_scenes.draw_picture(scene, library)) for scene in sampled]))
    labels, positions = zip(*[label_picture(scene, library) for scene in sampled])
    stacked = {name: torch.from_numpy(np.stack([label[name] for label in labels])) for name in labels[0]}
    return pixels, stacked, torch.from_numpy(np.stack(positions))


def compute_loss(features: torch.Tensor, heads: PatchHeads, labels: dict, positions: torch.Tensor, prefix: str):
    """Sum of the heads' losses, and each head's accuracy on patches that show something."""
    logits, predicted = heads(features)
    loss, scores = torch.zeros(()), {}
    for name, target in labels.items():
        smoothing = SMOOTHING if name == "name" else 0.0
        weight = NAME_WEIGHT if name in ("name", "garment") else 1.0
        loss = loss + weight * nn.functional.cross_entropy(
            logits[name].flatten(0, 1), target.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )
        shown = target >= 0 if name == "background" else target > 0
        if shown.any():
            scores[prefix + name] = (logits[name].argmax(-1) == target)[shown].float().mean().item()
    known = ~positions.isnan()
    return loss + 20 * nn.functional.mse_loss(predicted[known], positions[known]), scores


class Lessons(torch.utils.data.Dataset):
    """Batches of old and of new pictures, deterministic by seed and step."""

    def __init__(self, library: Library, seed: int, batch_size: int, steps: range):
        self.library, self.seed, self.steps = library, seed, steps
        self.num_old, self.num_garments, self.num_things = split_batch(batch_size)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[tuple, tuple]:
        rng = random.Random(f"tower of things {self.seed} {self.steps[index]}")
        new = make_picture_batch(rng, self.library, self.num_garments + self.num_things, self.num_garments)
        return pretrain_tower.make_batch(rng, self.num_old), new


def split_batch(size: int) -> tuple[int, int, int]:
    """How many old pictures, garments and other new ones."""
    old, garments = (round(share * size) for share in SHARES.values())
    return old, garments, size - old - garments


class Lesson(nn.Module):
    """The growing tower with its heads, and the smaller one that says where old pictures' features were."""

    def __init__(self, tower: CLIPVisionModel, library: Library):
        super().__init__()
        width = tower.config.hidden_size
        self.before = tower.eval().requires_grad_(False)
        self.tower = grow_tower(tower).train().requires_grad_(True)
        self.old_heads = PatchHeads(width)
        self.new_heads = PatchHeads(width, head_sizes(library))

    def forward(self, old: tuple, new: tuple) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a batch of either, with the accuracies by head."""
        features = self.tower(torch.cat([old[0], new[0]])).last_hidden_state[:, 1:]
        ours, theirs = features.split([len(old[0]), len(new[0])])
        with torch.no_grad():
            before = self.before(old[0]).last_hidden_state[:, 1:]
        held = (ours - before).square().mean() / before.var((0, 1)).mean()
        old_loss, scores = compute_loss(ours, self.old_heads, *old[1:], prefix="old ")
        new_loss, new_scores = compute_loss(theirs, self.new_heads, *new[1:], prefix="")
        return old_loss + new_loss + HELD_WEIGHT * held, scores | new_scores | {"held": held.item()}


def teach(lesson: Lesson, library: Library, arguments: argparse.Namespace):
    """`arguments.steps` steps; saved every 250 of them, from where an interrupted run goes on."""
    optimizer = MuonWithAdamW(split_parameters(lesson, arguments.lr, arguments.muon_lr))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    state_file = arguments.output / "state.pt"
    start, averages, seconds = 0, {}, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        lesson.load_state_dict(state["lesson"]), optimizer.load_state_dict(state["optimizer"])
        start, averages, seconds = state["step"], state["averages"], state["seconds"]
    steps = range(start + 1, arguments.steps + 1)
    # Drawing takes a third of the time: a process of its own does it meanwhile.
    lessons = Lessons(library, arguments.seed, arguments.batch_size, steps)
    loader = torch.utils.data.DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=8)
    started = time.time() - seconds
    for step, (old, new) in zip(steps, loader):
        # A short warm-up, then a straight line to zero.
        factor = min(step / 100, (arguments.steps - step + 1) / arguments.steps * 1.1, 1.0)
        for group, rate in zip(optimizer.param_groups, base_rates):
            group["lr"] = rate * factor
        loss, scores = lesson(old, new)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in {"loss": loss.item(), **scores}.items():
            averages[name] = 0.97 * averages.get(name, value) + 0.03 * value
        if step % 50 == 0 or step == arguments.steps:
            record = {name: round(value, 3) for name, value in averages.items()}
            print(json.dumps({"step": step, "seconds": round(time.time() - started), **record}), flush=True)
        if step % 250 == 0 or step == arguments.steps:
            lesson.tower.save_pretrained(arguments.output)
            state = {"lesson": lesson.state_dict(), "optimizer": optimizer.state_dict(), "averages": averages}
            torch.save(state | {"step": step, "seconds": time.time() - started}, state_file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="with the tower that is grown")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.012)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    library = Library.load(arguments.cache, TRAINING_STYLES)
    teach(Lesson(model.model.vision_tower, library), library, arguments)


if __name__ == "__main__":
    main()
