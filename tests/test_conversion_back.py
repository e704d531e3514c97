# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Back to the authors' layout: of what the converter wrote, and of fine-tuned models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from authors_layout import (
    CONFIG,
    TOWER_PREFIX,
    all_tensors,
    change_json,
    read_weights,
    tower_tensors,
    write_checkpoint,
)
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from llava_mini import LlavaMiniConfig
from llava_mini.conversion.command import convert, main
from llava_mini.conversion.mapping.config_mapping import restore_config
from llava_mini.conversion.writing.to_original import to_original
from llava_mini.original_names_llava_mini import rename_key, restore_key


GOLDEN = Path(__file__).parent / "golden"
CASES = ("standard", "high_resolution")


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("case", CASES)
def test_golden_round_trip_is_bit_exact(converted, tmp_path, case):
    original = GOLDEN / case / "original"
    assert main([str(converted(case)), str(tmp_path / "back"), "--to-original"]) == 0
    assert_same_tensors(read_weights(tmp_path / "back"), read_weights(original))
    for path in original.glob("*.json"):
        if not path.name.endswith(".index.json"):
            assert json.loads((tmp_path / "back" / path.name).read_text()) == json.loads(path.read_text()), path.name


@pytest.mark.parametrize("tower", ["inside", "beside"])
@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp3x_gelu", "identity"])
def test_round_trip_of_projectors_and_grown_vocabularies(tmp_path, kind, tower):
    config = CONFIG | {"mm_projector_type": kind, "rope_scaling": {"type": "linear", "factor": 2.0}}
    source = write_checkpoint(tmp_path / "input", config, all_tensors(config), tower=tower)
    convert(source, tmp_path / "output")
    report = to_original(tmp_path / "output", tmp_path / "back")
    assert_same_tensors(read_weights(tmp_path / "back"), read_weights(source))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    assert "lm_head.weight rows 304 to 319" in report.ignored


def test_names_go_back():
    for key in all_tensors(CONFIG) | {TOWER_PREFIX + name: None for name in tower_tensors()}:
        names = rename_key(key)
        assert {restore_key(name, "mlp2x_gelu") for name in names} == {key}
    assert restore_key("model.multi_modal_projector.linear_1.bias", "linear") == "model.mm_projector.bias"
    assert restore_key("model.something.else", "linear") is None


@pytest.fixture
def tuned(tmp_path):
    """A checkpoint whose tower is inside, converted, changed, and saved by `save_pretrained`; the source and it."""
    source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG), tower="inside")
    convert(source, tmp_path / "output")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "output")
    with torch.no_grad():
        model.model.compressor.v_proj.bias += 1
        model.model.language_model.layers[0].mlp.up_proj.weight *= 2
    model.save_pretrained(tmp_path / "tuned")
    AutoProcessor.from_pretrained(tmp_path / "output").save_pretrained(tmp_path / "tuned")
    return source, tmp_path / "tuned"


def expected_after_tuning(source):
    tensors = read_weights(source)
    bias = tensors["model.compressor.attn.in_proj_bias"]
    tensors["model.compressor.attn.in_proj_bias"] = torch.cat([bias[:64], bias[64:] + 1])
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"] * 2
    return tensors


def without_added_rows(tensors):
    """The rows that conversion adds stay in a tuned model, where they may have been trained."""
    rows = CONFIG["vocab_size"]
    return {k: t[:rows] if k in ("model.embed_tokens.weight", "lm_head.weight") else t for k, t in tensors.items()}


def test_tuned_model_gets_its_last_tower_layers_from_the_tower(tuned, tmp_path):
    source, model = tuned
    tower = write_checkpoint(tmp_path / "other", CONFIG, all_tensors(CONFIG)) / "vision_tower"
    report = to_original(model, tmp_path / "back", vision_tower=str(tower))
    assert_same_tensors(without_added_rows(read_weights(tmp_path / "back")), expected_after_tuning(source))
    assert report.filled and all("layers.2." in name for name in report.filled)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["mm_vision_tower"] == str(tower)
    assert {key: config[key] for key in CONFIG if key not in ("mm_vision_tower", "vocab_size")} == {
        key: value for key, value in CONFIG.items() if key not in ("mm_vision_tower", "vocab_size")
    }
    convert(tmp_path / "back", tmp_path / "again", vision_tower=str(tower))
    again, before = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (tmp_path / "again", model)
    )
    assert_same_tensors(again, before)


def test_tuned_model_without_its_tower_names_it(tuned, tmp_path, capsys):
    source, model = tuned
    with pytest.raises(ValueError, match="where its vision tower came from.*--vision-tower"):
        to_original(model, tmp_path / "back")
    # As the converter leaves its files: the directory then knows what the authors' configuration said.
    shutil.copytree(tmp_path / "output" / "original", model / "original")
    change_json(model / "original" / "config.json", mm_vision_tower="some/clip")
    assert main([str(model), str(tmp_path / "back"), "--to-original"]) == 0
    printed = capsys.readouterr().out
    assert "the tower is left out, since some of its layers are not in the model" in printed
    assert "the authors' code takes it from some/clip" in printed
    expected = {k: t for k, t in expected_after_tuning(source).items() if not k.startswith(TOWER_PREFIX)}
    assert_same_tensors(read_weights(tmp_path / "back"), expected)


def test_trained_tower_is_not_left_out(tuned, tmp_path):
    _, folder = tuned
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.model.vision_tower.pre_layrnorm.bias += 1
    model.save_pretrained(folder)
    tower = write_checkpoint(tmp_path / "other", CONFIG, all_tensors(CONFIG)) / "vision_tower"
    shutil.copytree(tmp_path / "output" / "original", folder / "original")
    change_json(folder / "original" / "config.json", mm_vision_tower=str(tower))
    with pytest.raises(ValueError, match="tower is not the one in .*pre_layrnorm.bias differs.*--vision-tower"):
        to_original(folder, tmp_path / "back")
    to_original(folder, tmp_path / "back", vision_tower=str(tower))
    back = read_weights(tmp_path / "back")
    assert torch.equal(
        back[f"{TOWER_PREFIX}vision_model.pre_layrnorm.bias"], tower_tensors()["vision_model.pre_layrnorm.bias"] + 1
    )


def test_tower_in_another_dtype_is_the_same_tower(converted, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(converted("standard"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(converted("standard") / "original", tmp_path / "model" / "original")
    shutil.copytree(GOLDEN / "standard" / "vision_tower", tmp_path / "tower")
    change_json(tmp_path / "model" / "original" / "config.json", mm_vision_tower="../tower")
    to_original(tmp_path / "model", tmp_path / "back")
    back = read_weights(tmp_path / "back")
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}
    assert not any(name.startswith(TOWER_PREFIX) for name in back)


def test_tuned_tokenizer_is_one_that_transformers_4_reads(tuned, tmp_path):
    _, model = tuned
    tower = write_checkpoint(tmp_path / "other", CONFIG, all_tensors(CONFIG)) / "vision_tower"
    to_original(model, tmp_path / "back", vision_tower=str(tower))
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "USER" in settings["chat_template"] and not (tmp_path / "back" / "chat_template.jinja").exists()
    merges = json.loads((tmp_path / "back" / "tokenizer.json").read_text())["model"]["merges"]
    assert merges == ["a b"]  # tokenizers 0.19 knows only this form
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "back")
    assert tokenizer("ab").input_ids == AutoTokenizer.from_pretrained(model)("ab").input_ids == [303]
    assert (tmp_path / "back" / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor_layer_norm_eps": 1e-6}, "`compressor_layer_norm_eps` is 1e-06"),
        ({"compressor_num_attention_heads": 4}, "`compressor_num_attention_heads` is 4.*knows only 8"),
        ({"projector_hidden_act": "relu"}, "`projector_hidden_act` is 'relu'"),
        ({"model_type": "llava"}, "of type 'llava'"),
        ({"compressor_size": 0}, "at least 1"),
        ({"num_prefusion_layers": 5}, "tensor.s. are missing, such as 'model.prefusion.layers.2"),
    ],
)
def test_what_the_authors_code_does_not_know_is_refused(converted, tmp_path, changes, message):
    shutil.copytree(converted("standard"), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        to_original(tmp_path / "model", tmp_path / "back")
    assert main([str(tmp_path / "model"), str(tmp_path / "back"), "--to-original"]) == 2
    assert not (tmp_path / "back").exists()


def test_other_language_models_do_not_go_back():
    config = LlavaMiniConfig(text_config={"model_type": "mistral", "sliding_window": None}, dtype="float32")
    with pytest.raises(ValueError, match="`text_config.model_type` is 'mistral'"):
        restore_config(config, known={})


def test_settings_that_changed_go_back_and_the_authors_others_stay(converted):
    config = LlavaMiniConfig.from_pretrained(converted("standard"))
    known = json.loads((GOLDEN / "standard" / "original" / "config.json").read_text()) | {"tune_mm_mlp_adapter": True}
    assert restore_config(config, known) == known
    config.text_config.rms_norm_eps = 0.5
    restored = restore_config(config, known)
    assert restored["rms_norm_eps"] == 0.5 and restored["tune_mm_mlp_adapter"]
    assert "rope_parameters" not in restored  # transformers 4 has not heard of it


@pytest.mark.parametrize(("layers", "kind"), [(0, "identity"), (1, "linear"), (3, "mlp3x_gelu")])
def test_numbers_of_a_model_that_was_never_converted(layers, kind):
    config = LlavaMiniConfig(
        text_config={"model_type": "llama", "hidden_size": 1024, "rope_theta": 7.0},
        num_projector_layers=layers,
        num_prefusion_layers=5,
        compressor_size=3,
        resolution_ratio=4,
        vision_feature_layer=-3,
        dtype="bfloat16",
    )
    restored = restore_config(config, known={})
    expected = {
        "architectures": ["LlavaMiniLlamaForCausalLM"],
        "model_type": "llava_mini_llama",
        "mm_projector_type": kind,
        "prefusion_layer_num": 5,
        "compressor_size": 3,
        "resolution_ratio": 4,
        "mm_vision_select_layer": -3,
        "mm_hidden_size": 1024,
        "torch_dtype": "bfloat16",
        "rope_theta": 7.0,
        "rope_scaling": None,
        "tokenizer_padding_side": "right",
        "mm_use_im_start_end": False,
    }
    assert {key: restored[key] for key in expected} == expected


def test_other_rule_for_token_0_is_reported(converted, tmp_path):
    shutil.copytree(converted("standard"), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", prefusion_ignored_token_ids=[])
    report = to_original(tmp_path / "model", tmp_path / "back")
    assert "always leaves out id 0" in report.ignored["config prefusion_ignored_token_ids"]
