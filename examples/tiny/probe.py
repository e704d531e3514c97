"""
What the one vision token knows: linear classifiers read pictures of one shape from the token that the language model
gets and, to compare, from the mean of the patch features.

    python examples/tiny/probe.py --model examples/tiny/checkpoint
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from pretrain_tower import to_pixels
from scenes import IMAGE_SIZE, Scene, draw, sample_shapes
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llava_mini import LlavaMiniForConditionalGeneration


CHUNK = 100
LABELS = {
    "background": lambda scene: scene.background,
    "colour": lambda scene: scene.shapes[0].colour,
    "shape": lambda scene: scene.shapes[0].kind,
    "size": lambda scene: scene.shapes[0].size,
    "left or right": lambda scene: scene.shapes[0].x < IMAGE_SIZE / 2,
    "top or bottom": lambda scene: scene.shapes[0].y < IMAGE_SIZE / 2,
}


@torch.no_grad()
def read_pictures(model: LlavaMiniForConditionalGeneration, pictures: list[Scene]) -> dict[str, np.ndarray]:
    """The vision tokens `(pictures, C*C*D)` and the mean patch features `(pictures, Dv)`."""
    pixels = to_pixels(np.stack([np.asarray(draw(scene)) for scene in pictures]))[:, None]
    outputs = [model.get_image_features(part, return_dict=True) for part in pixels.split(CHUNK)]
    tokens = torch.cat([token.flatten() for output in outputs for token in output.pooler_output])
    patches = torch.cat([output.last_hidden_state.unflatten(0, (len(output.pooler_output), -1)) for output in outputs])
    return {"vision token": tokens.view(len(pictures), -1).numpy(), "mean of the patches": patches.mean((1, 2)).numpy()}


def probe(model: LlavaMiniForConditionalGeneration, num_train: int, num_test: int) -> dict[str, dict[str, float]]:
    """By what is read, the share of new pictures told right; "always the same" is the most frequent answer's share."""
    rng = random.Random("probe")
    pictures = [sample_shapes(rng, 1) for _ in range(num_train + num_test)]
    labels = {name: [label(scene) for scene in pictures] for name, label in LABELS.items()}
    scores = {"always the same": {n: max(Counter(v[num_train:]).values()) / num_test for n, v in labels.items()}}
    for source, features in read_pictures(model, pictures).items():
        scores[source] = {}
        for name, values in labels.items():
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            classifier.fit(features[:num_train], values[:num_train])
            scores[source][name] = classifier.score(features[num_train:], values[num_train:])
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--num_train", type=int, default=1000)
    parser.add_argument("--num_test", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    scores = probe(model, arguments.num_train, arguments.num_test)
    print(f"| n = {arguments.num_test} | " + " | ".join(LABELS) + " |\n" + "|---" * (len(LABELS) + 1) + "|")
    for source, shares in scores.items():
        print(f"| {source} | " + " | ".join(f"{share:.2f}" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
