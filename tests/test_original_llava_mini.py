"""The authors' checkpoints without converting: the same model, by every class."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
)

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniModel


GOLDEN = Path(__file__).parent / "golden"
CASES = ["standard", "high_resolution"]


@pytest.fixture(params=CASES)
def original(request):
    return GOLDEN / request.param / "original"


def assert_equal_weights(model, other):
    """Everything but the rows that conversion gives the placeholders."""
    expected = other.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        rows = len(tensor) if tensor.ndim else None
        assert torch.equal(tensor, expected[name][:rows]), name


@pytest.mark.parametrize(
    "model_class", [LlavaMiniForConditionalGeneration, AutoModelForImageTextToText, AutoModelForMultimodalLM]
)
def test_same_weights_and_logits_as_converted(original, converted, model_class):
    model = model_class.from_pretrained(original).eval()
    other = AutoModelForImageTextToText.from_pretrained(converted(original.parent.name)).eval()
    assert type(model) is LlavaMiniForConditionalGeneration and type(model.config) is LlavaMiniConfig
    assert_equal_weights(model, other)
    tensors = load_file(original.parent / "tensors.safetensors")
    ids = tensors["image.input_ids"]
    count = model.config.num_image_tokens
    place = (ids[0] == -200).nonzero()[0, 0]
    image = torch.full((1, count), model.config.image_token_id)
    ids = torch.cat([ids[:, :place], image, ids[:, place + 1 :]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=tensors["image.images"]).logits
    torch.testing.assert_close(logits, tensors["image.logits"], atol=1e-5, rtol=0)  # the project's bar in float32


def test_base_model(original, converted):
    for model in (AutoModel.from_pretrained(original), LlavaMiniModel.from_pretrained(original)):
        assert type(model) is LlavaMiniModel
        assert_equal_weights(model, AutoModel.from_pretrained(converted(original.parent.name)))


def test_configuration_and_tokenizer(original):
    config = AutoConfig.from_pretrained(original)
    assert isinstance(config, LlavaMiniConfig)
    assert (config.image_token_id, config.video_token_id) == (402, 403)
    assert config.vision_config.hidden_size == 32 and config.prefusion_ignored_token_ids == [0]
    assert AutoTokenizer.from_pretrained(original).convert_tokens_to_ids("<|eot_id|>") == 397


def test_saving_writes_our_names(original, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(original)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_mini"
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_weights(loaded, model)


def test_options_pass_through(original):
    model, info = AutoModelForImageTextToText.from_pretrained(
        original, dtype=torch.float16, attn_implementation="eager", output_loading_info=True
    )
    assert model.dtype == torch.float16 and model.config.text_config._attn_implementation == "eager"
    assert not info["missing_keys"]


def copy_case(name, folder):
    shutil.copytree(GOLDEN / name, folder / name)
    return folder / name / "original"


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_incomplete_checkpoints_are_refused(tmp_path, change):
    directory = copy_case("standard", tmp_path)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if change == "missing":
            tensors.pop("model.compressor.query", None)
        else:
            tensors[f"model.surprise.{file.stem}"] = torch.zeros(1)
        save_file(tensors, file, metadata={"format": "pt"})
    if change == "unexpected":
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        index["weight_map"] |= {f"model.surprise.{f.stem}": f.name for f in directory.glob("*.safetensors")}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        del index["weight_map"]["model.compressor.query"]
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{change} keys such as .*Or convert it"):
        AutoModelForImageTextToText.from_pretrained(directory)


@pytest.mark.parametrize("name", [None, 5])
def test_unknown_tower_is_refused(tmp_path, name):
    directory = copy_case("high_resolution", tmp_path)
    config = json.loads((directory / "config.json").read_text()) | {"mm_vision_tower": name}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"names no `mm_vision_tower` \(it is {name}\).*Or convert it"):
        AutoModelForImageTextToText.from_pretrained(directory)
