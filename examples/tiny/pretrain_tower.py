"""
Stands in for CLIP's pre-training: a small CLIP tower learns from per-patch labels what each patch shows. They are
predicted from the last layer, which LLaVA-Mini reads here.

    python examples/tiny/pretrain_tower.py --output runs/tower --steps 3000
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import scenes
import torch
from muon import MuonWithAdamW, split_parameters
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


PATCH = 14
GRID = scenes.IMAGE_SIZE // PATCH
IGNORED = -100
PLACES = 2 * GRID
# Classes of each per-patch label; the first of each is "nothing there".
HEADS = {
    "background": len(scenes.BACKGROUNDS),
    "kind": 1 + len(scenes.KINDS),
    "colour": 1 + len(scenes.COLOURS),
    "size": 1 + len(scenes.RADII),
    "character": 1 + 10,
    "digit": 1 + 10,
    "centre": 2,
    # Where the object's centre is, as classes: read as easily as a colour, which a coordinate is not.
    "column": 1 + PLACES,
    "row": 1 + PLACES,
}
COLOUR_NAMES, BACKGROUND_NAMES, SIZE_NAMES = list(scenes.COLOURS), list(scenes.BACKGROUNDS), list(scenes.RADII)
PATCH_CENTRES = np.stack(np.meshgrid(*[np.arange(GRID) * PATCH + PATCH / 2] * 2), axis=-1).reshape(-1, 2)  # x, y


def tower_config() -> CLIPVisionConfig:
    """84x84 pixels, 36 patches; LLaVA-Mini reads the last layer, there is none to leave out."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=scenes.IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """8-bit pictures `(..., height, width, 3)` to the processor's pixel values `(..., 3, height, width)`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (torch.from_numpy(pictures).movedim(-1, -3).float() / 255 - mean) / std


def sample_scene(rng: random.Random) -> scenes.Scene:
    """Pictures of every sort; a share of shapes from clips, whose radii lie between small and large too."""
    sort = rng.choices(["1", "2", "3", "number", "digit", "clip"], [20, 17, 17, 24, 14, 8])[0]
    if sort == "number":
        return scenes.sample_number(rng)
    if sort == "digit":
        return scenes.sample_digit(rng)
    if sort == "clip":
        return scenes.sample_clip(rng).at(rng.random())
    return scenes.sample_shapes(rng, int(sort))


def label_patches(scene: scenes.Scene) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Class of every patch `(36,)` for each head, and the centre `(36, 2)` of what it shows, NaN where nothing is."""
    labels = {name: np.zeros(len(PATCH_CENTRES), dtype=np.int64) for name in HEADS}
    positions = np.full((len(PATCH_CENTRES), 2), np.nan, dtype=np.float32)
    labels["background"][:] = BACKGROUND_NAMES.index(scene.background)

    def mark(x: float, y: float, half_width: float, half_height: float, **classes: int):
        offset = np.abs(PATCH_CENTRES - (x, y))
        inside = (offset[:, 0] < half_width + 4) & (offset[:, 1] < half_height + 4)
        nearest = offset.sum(1).argmin()
        inside[nearest] = True
        column, row = (min(int(PLACES * value / scenes.IMAGE_SIZE), PLACES - 1) for value in (x, y))
        for name, value in {**classes, "column": 1 + column, "row": 1 + row}.items():
            labels[name][inside] = value
        labels["centre"][nearest] = 1
        positions[inside] = (x / scenes.IMAGE_SIZE, y / scenes.IMAGE_SIZE)

    for shape in scene.shapes:
        kind, colour = 1 + scenes.KINDS.index(shape.kind), 1 + COLOUR_NAMES.index(shape.colour)
        # Growing shapes pass through radii that are neither.
        sizes = [
            i + 1 for i, name in enumerate(SIZE_NAMES) if scenes.RADII[name][0] <= shape.radius <= scenes.RADII[name][1]
        ]
        size = sizes[0] if sizes else IGNORED
        mark(shape.x, shape.y, shape.radius, shape.radius, kind=kind, colour=colour, size=size)
    if scene.number is not None:
        colour = 1 + COLOUR_NAMES.index(scene.number_colour)
        for character, left, top, right, bottom in scenes.number_layout(scene):
            half = (right - left) / 2 - 4
            mark(
                (left + right) / 2,
                (top + bottom) / 2,
                half,
                (bottom - top) / 2 - 4,
                character=1 + int(character),
                colour=colour,
            )
    if scene.digit is not None:
        left, top, side = scene.digit_box
        value = 1 + int(scenes.handwritten_digits()[1][scene.digit])
        mark(left + side / 2, top + side / 2, side / 2 - 4, side / 2 - 4, digit=value)
    return labels, positions


class PatchHeads(nn.Module):
    """A linear classifier a label, and one for positions."""

    def __init__(self, width: int, sizes: dict[str, int] = HEADS):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in sizes.items()})
        self.position_head = nn.Linear(width, 2)

    def forward(self, features: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Features `(pictures, 36, width)` to logits a head and positions `(pictures, 36, 2)`."""
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}, self.position_head(features)


def make_batch(rng: random.Random, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Pixels, labels and positions of new pictures."""
    sampled = [sample_scene(rng) for _ in range(size)]
    pixels = to_pixels(np.stack([np.asarray(scenes.draw(scene)) for scene in sampled]))
    labels, positions = zip(*[label_patches(scene) for scene in sampled])
    stacked = {name: torch.from_numpy(np.stack([label[name] for label in labels])) for name in HEADS}
    return pixels, stacked, torch.from_numpy(np.stack(positions))


def compute_loss(tower: CLIPVisionModel, heads: PatchHeads, batch: tuple) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum of all heads' losses, and each head's accuracy on patches that show something."""
    pixels, labels, positions = batch
    logits, predicted = heads(tower(pixels).last_hidden_state[:, 1:])
    loss, scores = torch.zeros(()), {}
    for name, target in labels.items():
        loss = loss + nn.functional.cross_entropy(logits[name].flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        shown = target > 0 if name != "background" else target >= 0
        if shown.any():
            scores[name] = (logits[name].argmax(-1) == target)[shown].float().mean().item()
    known = ~positions.isnan()
    loss = loss + 20 * nn.functional.mse_loss(predicted[known], positions[known])
    scores["position error"] = (predicted[known] - positions[known]).abs().mean().item()
    return loss, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = random.Random(f"tower {arguments.seed}")
    tower = CLIPVisionModel(tower_config())
    heads = PatchHeads(tower.config.hidden_size)
    tower.train()
    optimizer = MuonWithAdamW(split_parameters(nn.ModuleList([tower, heads]), arguments.lr, arguments.muon_lr))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    started, averages = time.time(), {}
    for step in range(1, arguments.steps + 1):
        # A short warm-up, then a straight line to zero.
        factor = min(step / 100, (arguments.steps - step + 1) / arguments.steps * 1.1, 1.0)
        for group, rate in zip(optimizer.param_groups, base_rates):
            group["lr"] = rate * factor
        loss, scores = compute_loss(tower, heads, make_batch(rng, arguments.batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in {"loss": loss.item(), **scores}.items():
            averages[name] = 0.95 * averages.get(name, value) + 0.05 * value
        if step % 50 == 0 or step == arguments.steps:
            record = {name: round(value, 4) for name, value in averages.items()}
            print(json.dumps({"step": step, "seconds": round(time.time() - started), **record}), flush=True)
        if step % 500 == 0 or step == arguments.steps:
            tower.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
