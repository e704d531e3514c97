"""FLOPs are exact, so they are asserted: the paper's figures are beaten by skipping what nobody reads."""

import pytest
import torch
from flops import count, count_language_model, count_llava, count_mini
from shapes import llava_config, mini_config
from tiny import ROWS, collate, make_row, tiny_model
from transformers import LlavaForConditionalGeneration

from llava_mini import LlavaMiniForConditionalGeneration


TERA = 1e12


def on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


def test_vicuna_7b():
    """Paper: 1.96 T for LLaVA-Mini, 8.55 T for LLaVA-v1.5."""
    stages = count_mini(on_meta(LlavaMiniForConditionalGeneration, mini_config("Vicuna-7B")), 43)
    total = sum(stages.values())
    assert total <= 1.80 * TERA
    again = total - stages["tower"] - stages["compressor, projector, pre-fusion of vision"]
    assert again <= 0.65 * TERA
    llava = sum(count_llava(on_meta(LlavaForConditionalGeneration, llava_config("Vicuna-7B")), 43).values())
    assert llava == pytest.approx(8.62 * TERA, rel=1e-3)


def test_high_resolution():
    """Paper: 8.13 T at 672 pixels with 64 vision tokens."""
    config = mini_config("Vicuna-7B", compressor_size=8, resolution_ratio=2)
    assert sum(count_mini(on_meta(LlavaMiniForConditionalGeneration, config), 43).values()) <= 7.7 * TERA


@pytest.mark.parametrize(("size", "ratio"), [(1, 1), (2, 2)])
def test_stages_add_up_to_the_forward_pass(size, ratio):
    model = tiny_model(compressor_size=size, resolution_ratio=ratio, prefusion_ignored_token_ids=[])
    row = make_row(model.config, ROWS["one image"])
    inputs = collate([row])
    inputs.pop("attention_mask")
    text_tokens = len(row.input_ids) - size**2
    whole = count(lambda: model(**inputs, logits_to_keep=1, use_cache=False))
    assert sum(count_mini(model, text_tokens).values()) == whole
    # And the question alone, with the image encoded before.
    with torch.no_grad():
        context = model.encode_visuals(inputs.pop("pixel_values"))
    again = count(lambda: model(**inputs, vision_context=context, logits_to_keep=1, use_cache=False))
    stages = count_mini(model, text_tokens)
    assert again == stages["pre-fusion of text"] + stages["language model"] + stages["head"]
    assert count_language_model(model.model.language_model, torch.randn(1, len(row.input_ids), 32)) < again
