"""
A trained small model made larger without changing what it does: more layers of the tower that begin as the identity, and
a larger vocabulary.

    python examples/tiny/grow.py --model runs/tiny/phases/last --tower runs/tiny/tower_grown
"""

import argparse
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_mini import LlavaMiniForConditionalGeneration


TOWER_LAYERS = 6


def grow_tower(tower: CLIPVisionModel, num_layers: int = TOWER_LAYERS) -> CLIPVisionModel:
    """The tower with further layers behind its own, whose branches add nothing yet: the same outputs."""
    config = CLIPVisionConfig.from_dict(tower.config.to_dict() | {"num_hidden_layers": num_layers})
    grown = CLIPVisionModel(config)
    missing = grown.load_state_dict(tower.state_dict(), strict=False).missing_keys
    new = {f"encoder.layers.{i}." for i in range(tower.config.num_hidden_layers, num_layers)}
    assert all(any(prefix in name for prefix in new) for name in missing)
    with torch.no_grad():
        for layer in grown_layers(grown)[tower.config.num_hidden_layers :]:
            for branch in (layer.self_attn.out_proj, layer.mlp.fc2):
                branch.weight.zero_(), branch.bias.zero_()
    return grown.train(tower.training)


def grown_layers(tower: CLIPVisionModel) -> torch.nn.ModuleList:
    """The tower's layers."""
    return getattr(tower, "vision_model", tower).encoder.layers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tower", type=Path, required=True, help="where to save the grown tower")
    arguments = parser.parse_args()
    model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    grow_tower(model.model.vision_tower).save_pretrained(arguments.tower)


if __name__ == "__main__":
    main()
