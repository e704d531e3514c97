"""
A trained small model made larger without changing what it does: more layers of the tower, which begin as the identity,
and a larger vocabulary, in which a token that there was keeps its vectors.

    python examples/tiny/grow.py --model runs/tiny/phases/"sizes and counts" --output runs/grown
"""

import argparse
import copy
from pathlib import Path

import picture_questions
import questions
import torch
import wordings
from build import build_processor, build_tokenizer
from picture_names import load_names
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


TOWER_LAYERS = 6
MAX_VOCABULARY = 1536  # enough for every name to be one token


def grow_tower(tower: CLIPVisionModel, num_layers: int = TOWER_LAYERS) -> CLIPVisionModel:
    """The tower with further layers behind its own, whose branches add nothing yet: the same outputs."""
    config = CLIPVisionConfig.from_dict(tower.config.to_dict() | {"num_hidden_layers": num_layers})
    grown = CLIPVisionModel(config)
    grown.load_state_dict(grown.state_dict() | tower.state_dict())
    with torch.no_grad():
        for layer in _layers(grown)[tower.config.num_hidden_layers :]:
            for branch in (layer.self_attn.out_proj, layer.mlp.fc2):
                branch.weight.zero_()
                branch.bias.zero_()
    return grown.train(tower.training)


def _layers(tower: CLIPVisionModel) -> torch.nn.ModuleList:
    # Before 5.21 or so the tower's parts lie one level deeper.
    return getattr(tower, "vision_model", tower).encoder.layers


def build_larger_tokenizer() -> PreTrainedTokenizerFast:
    """Of the questions about drawn pictures in all wordings, and about pictures of things."""
    old = questions.vocabulary()
    new = picture_questions.vocabulary(load_names())
    return build_tokenizer([*old, *wordings.vocabulary(sorted(set(old))), *new], MAX_VOCABULARY)


def take_rows(new: torch.Tensor, old: torch.Tensor, new_ids: dict[str, int], old_ids: dict[str, int]) -> torch.Tensor:
    """`new` `(vocabulary, width)` with the rows of `old` for every token that both vocabularies have."""
    for token in new_ids.keys() & old_ids.keys():
        new[new_ids[token]] = old[old_ids[token]]
    return new


def grow_vocabulary(
    model: LlavaMiniForConditionalGeneration, old: LlavaMiniProcessor, new: LlavaMiniProcessor
) -> LlavaMiniForConditionalGeneration:
    """The model for the new processor: everything is taken over but the vectors of tokens that there were not."""
    config = copy.deepcopy(model.config)
    tokenizer = new.tokenizer
    config.text_config.vocab_size = len(tokenizer)
    for name in ("bos", "eos", "pad"):
        setattr(config.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    config.image_token_id, config.video_token_id = new.image_token_id, new.video_token_id
    for name, value in new.find_turn_headers().items():
        setattr(config, name, value)
    grown = LlavaMiniForConditionalGeneration(config).to(torch.float32)
    weights, own = model.state_dict(), grown.state_dict()
    old_ids, new_ids = old.tokenizer.get_vocab(), tokenizer.get_vocab()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = take_rows(own[name].clone(), weights[name], new_ids, old_ids)
    grown.load_state_dict(weights)
    grown.generation_config = copy.deepcopy(model.generation_config)
    return grown.train(model.training)


def set_tower(model: LlavaMiniForConditionalGeneration, tower: CLIPVisionModel) -> LlavaMiniForConditionalGeneration:
    """The model with another tower of the same width."""
    config = copy.deepcopy(model.config)
    config.vision_config = copy.deepcopy(tower.config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("model.vision_tower.")}
    weights |= {f"model.vision_tower.{name}": value for name, value in tower.state_dict().items()}
    changed = LlavaMiniForConditionalGeneration(config).to(torch.float32)
    changed.load_state_dict(weights)
    changed.generation_config = copy.deepcopy(model.generation_config)
    return changed.train(model.training)


def grow(checkpoint: Path, tower: Path | None) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    """A checkpoint with the larger vocabulary, and with this tower, or with its own and layers that do nothing yet."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    own = LlavaMiniProcessor.from_pretrained(checkpoint)
    processor = build_processor(tokenizer=build_larger_tokenizer())
    tower = CLIPVisionModel.from_pretrained(tower) if tower else grow_tower(model.model.vision_tower)
    return set_tower(grow_vocabulary(model, own, processor), tower), processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tower", type=Path, help="what teach_tower.py saved")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, processor = grow(arguments.model, arguments.tower)
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
