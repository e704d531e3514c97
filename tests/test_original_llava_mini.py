"""The authors' checkpoints without converting: the same model, by every class."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from authors_layout import CONFIG as LAYOUT
from authors_layout import all_tensors, change_json, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    pipeline,
)

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniModel
from llava_mini.cli import main
from llava_mini.conversion.command import convert


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


CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "path": str(GOLDEN / "preprocess" / "image1.png")},
            {"type": "text", "text": "What is this?"},
        ],
    }
]


def inputs_of(processor):
    return processor.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.mark.parametrize("backend", [None, "pil"])
def test_processor_is_the_converted_ones(original, converted, backend):
    processor = AutoProcessor.from_pretrained(original, backend=backend)
    expected = AutoProcessor.from_pretrained(converted(original.parent.name), backend=backend)
    assert type(processor.image_processor) is type(expected.image_processor)
    ids, pixels = (inputs_of(processor)[name] for name in ("input_ids", "pixel_values"))
    assert torch.equal(ids, inputs_of(expected)["input_ids"])
    assert torch.equal(pixels, inputs_of(expected)["pixel_values"])
    frames = torch.randint(256, (3, 3, 40, 60), dtype=torch.uint8)
    video, same = (p(text="<video>", videos=[frames], return_tensors="pt") for p in (processor, expected))
    assert video.keys() == same.keys() and all(torch.equal(video[name], same[name]) for name in same)
    model = AutoModelForImageTextToText.from_pretrained(original)
    other = AutoModelForImageTextToText.from_pretrained(converted(original.parent.name))
    made, wanted = (m.generate(**inputs_of(expected), max_new_tokens=5, do_sample=False) for m in (model, other))
    assert torch.equal(made, wanted)


def test_pipeline_and_command_line(original, converted, capsys):
    answers = []
    for directory in (original, converted(original.parent.name)):
        ask = pipeline("image-text-to-text", model=str(directory))
        answers.append(ask(CHAT, generate_kwargs={"max_new_tokens": 4, "do_sample": False})[0]["generated_text"][-1])
        arguments = ["--image", CHAT[0]["content"][0]["path"], "--temperature", "0", "--max-new-tokens", "4"]
        assert main(["ask", "--model", str(directory), "--query", "What is this?", *arguments]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[:2] == answers[2:] and answers[0]["content"]


def test_processor_saves_as_ours(original, tmp_path):
    AutoProcessor.from_pretrained(original).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(
        inputs_of(processor)["input_ids"], inputs_of(AutoProcessor.from_pretrained(original))["input_ids"]
    )


def test_placeholders_behind_a_full_vocabulary(tmp_path):
    folder = write_checkpoint(tmp_path / "vicuna", LAYOUT, all_tensors(LAYOUT), tower="beside")
    convert(folder, tmp_path / "converted")
    answers = []
    for directory in (folder, tmp_path / "converted"):
        model, processor = (c.from_pretrained(directory) for c in (AutoModelForImageTextToText, AutoProcessor))
        assert (model.config.image_token_id, processor.image_token_id) == (304, 304)
        inputs = inputs_of(processor)
        answers.append(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :])
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["float16", "torch.float16", "torch.bfloat16"])
def test_older_names_of_dtypes(tmp_path, name):
    directory = copy_case("standard", tmp_path)
    change_json(directory / "config.json", torch_dtype=name)
    dtype = getattr(torch, name.removeprefix("torch."))
    assert AutoConfig.from_pretrained(directory).dtype == dtype
    assert AutoModelForImageTextToText.from_pretrained(directory, dtype="auto").dtype == dtype


def test_processor_without_a_tokenizer(tmp_path):
    directory = copy_case("standard", tmp_path)
    for path in directory.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer: download its files too"):
        AutoProcessor.from_pretrained(directory)
    # The model needs none; its placeholders stand behind the vocabulary.
    assert AutoModelForImageTextToText.from_pretrained(directory).config.image_token_id == 408


def test_a_tower_that_is_a_whole_clip(tmp_path, original):
    """As CLIP's own repositories are: the vision half is taken."""
    directory = copy_case("high_resolution", tmp_path)
    tower = directory.parent / "vision_tower"
    vision = CLIPVisionModel.from_pretrained(tower)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(vision_config=vision.config.to_dict(), text_config=text, projection_dim=16))
    weights = {f"vision_model.{name.removeprefix('vision_model.')}": v for name, v in vision.state_dict().items()}
    assert not clip.load_state_dict(weights, strict=False).unexpected_keys
    shutil.rmtree(tower)
    clip.save_pretrained(tower)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    assert_equal_weights(model, AutoModelForImageTextToText.from_pretrained(GOLDEN / "high_resolution" / "original"))
