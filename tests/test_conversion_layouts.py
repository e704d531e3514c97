# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The converter on every layout that the authors' checkpoints come in."""

import json
from pathlib import Path

import pytest
import torch
from authors_layout import (
    CONFIG,
    TOWER_PREFIX,
    VISION,
    all_tensors,
    change_json,
    copy_golden,
    language_tensors,
    new_tensors,
    projector_tensors,
    read_weights,
    tower_tensors,
    write_checkpoint,
    write_tower,
    write_vicuna_tokenizer,
    write_weights,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from llava_mini.conversion.command import convert, main


GOLDEN = Path(__file__).parent / "golden"


def load(directory):
    """The model, all of whose weights have to come from the directory."""
    model, info = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def runs(directory):
    """A question about an image gets a finite answer through processor and model."""
    model, processor = load(directory), AutoProcessor.from_pretrained(directory)
    size = 3 * VISION["image_size"]
    image = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = processor(images=[image], text="<image>ab", return_tensors="pt")
    return model(**inputs).logits.isfinite().all()


def assert_same_weights(directory, tensors, names):
    """Pairs of the authors' name and ours hold the same values."""
    weights = read_weights(directory)
    for original, ours in names.items():
        assert torch.equal(weights[ours], tensors[original]), original


@pytest.mark.parametrize("tower", ["inside", "beside"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_file_kinds(tmp_path, converted, kind, shards, tower):
    original = copy_golden("standard", tmp_path)
    tensors = read_weights(original)
    for path in original.glob("model*"):
        path.unlink()
    if tower == "beside":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TOWER_PREFIX)}
    write_weights(original, tensors, kind, shards)
    convert(original, tmp_path / "output")
    expected, found = read_weights(converted("standard")), read_weights(tmp_path / "output")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tensors_that_are_not_contiguous(tmp_path):
    """Which torch.save keeps as they are and safetensors refuses to write."""
    tensors = all_tensors(CONFIG)
    strided = {name: tensor.t().contiguous().t() for name, tensor in tensors.items() if tensor.ndim == 2}
    convert(write_checkpoint(tmp_path / "input", CONFIG, tensors | strided, kind="bin"), tmp_path / "output")
    weights = read_weights(tmp_path / "output")
    assert torch.equal(weights["model.language_model.norm.weight"], tensors["model.norm.weight"])
    assert torch.equal(weights["model.compressor.query"], tensors["model.compressor.query"])


def test_safetensors_count_where_there_are_both(tmp_path):
    source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
    (source / "pytorch_model.bin").write_text("never read")
    convert(source, tmp_path / "output")


def test_output_is_sharded_where_asked(tmp_path, converted):
    convert(GOLDEN / "standard" / "original", tmp_path / "output", max_shard_size=200_000)
    files = sorted(path.name for path in (tmp_path / "output").glob("*.safetensors"))
    for path in (tmp_path / "output").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # or transformers 4, the authors' too, refuses to read it
    assert len(files) > 4 and "model.safetensors.index.json" in [p.name for p in (tmp_path / "output").iterdir()]
    expected = read_weights(converted("standard"))
    for name, tensor in load(tmp_path / "output").state_dict().items():
        assert torch.equal(tensor, expected[name])


PROJECTORS = {
    "linear": {"model.mm_projector.weight": "linear_1.weight", "model.mm_projector.bias": "linear_1.bias"},
    "mlp1x_gelu": {"model.mm_projector.0.weight": "linear_1.weight"},
    "mlp2x_gelu": {"model.mm_projector.0.weight": "linear_1.weight", "model.mm_projector.2.bias": "linear_2.bias"},
    "mlp3x_gelu": {"model.mm_projector.2.weight": "linear_2.weight", "model.mm_projector.4.weight": "linear_3.weight"},
    "identity": {},
}


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projector_kinds(tmp_path, kind):
    config = CONFIG | {"mm_projector_type": kind}
    tensors = all_tensors(config)
    convert(write_checkpoint(tmp_path / "input", config, tensors), tmp_path / "output")
    projector = load(tmp_path / "output").model.multi_modal_projector
    assert len(list(projector.named_parameters())) == sum("mm_projector" in name for name in tensors)
    names = {original: f"model.multi_modal_projector.{ours}" for original, ours in PROJECTORS[kind].items()}
    assert_same_weights(tmp_path / "output", tensors, names)
    features = torch.randn(2, VISION["hidden_size"])
    assert torch.allclose(projector(features), authors_projector(kind, tensors)(features), atol=1e-6)  # rounding


def authors_projector(kind, tensors):
    """The projector as the authors build it: a module list in which activations have odd places."""
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        projector = nn.Linear(VISION["hidden_size"], CONFIG["hidden_size"])
    else:
        layers = [nn.Linear(VISION["hidden_size"], CONFIG["hidden_size"])]
        for _ in range(int(kind[3]) - 1):
            layers += [nn.GELU(), nn.Linear(CONFIG["hidden_size"], CONFIG["hidden_size"])]
        projector = nn.Sequential(*layers)
    prefix = "model.mm_projector."
    projector.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return projector


@pytest.mark.parametrize(("size", "ratio", "layers"), [(1, 1, 1), (3, 1, 2), (2, 3, 0), (4, 2, 5)])
def test_sizes_and_layer_counts(tmp_path, size, ratio, layers):
    config = CONFIG | {"compressor_size": size, "resolution_ratio": ratio, "prefusion_layer_num": layers}
    convert(write_checkpoint(tmp_path / "input", config, all_tensors(config)), tmp_path / "output")
    found = load(tmp_path / "output").config
    assert (found.compressor_size, found.resolution_ratio, found.num_prefusion_layers) == (size, ratio, layers)
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert (processor.compressor_size, processor.image_processor.resolution_ratio) == (size, ratio)
    assert runs(tmp_path / "output")


def test_missing_settings_get_the_authors_defaults(tmp_path):
    optional = (
        "compressor_size",
        "prefusion_layer_num",
        "resolution_ratio",
        "mm_projector_type",
        "mm_vision_select_layer",
        "mm_vision_select_feature",
        "image_aspect_ratio",
        "num_key_value_heads",
        "mm_hidden_size",
    )
    config = {key: value for key, value in CONFIG.items() if key not in optional}
    report = convert(write_checkpoint(tmp_path / "input", config, all_tensors(config)), tmp_path / "output")
    found = load(tmp_path / "output").config
    assert (found.compressor_size, found.num_prefusion_layers, found.resolution_ratio) == (2, 4, 1)
    assert (found.num_projector_layers, found.vision_feature_layer) == (1, -2)
    assert found.text_config.num_key_value_heads == CONFIG["num_attention_heads"]
    assert not AutoProcessor.from_pretrained(tmp_path / "output").image_processor.do_pad
    assert {name.removeprefix("config ") for name in report.filled if name.startswith("config ")} == set(optional[:6])


ROPE = {
    "none": (None, {"rope_type": "default", "rope_theta": 10000.0}),
    "old": ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "new": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        None,
    ),
}


@pytest.mark.parametrize("style", ROPE)
def test_rope_settings(tmp_path, style):
    scaling, expected = ROPE[style]
    config = CONFIG | {"rope_scaling": scaling}
    convert(write_checkpoint(tmp_path / "input", config, all_tensors(config)), tmp_path / "output")
    found = load(tmp_path / "output").config.text_config.rope_parameters
    expected = expected or scaling | {"rope_theta": 10000.0}
    assert {key: found[key] for key in expected} == expected


def test_old_rope_setting_reaches_both_language_model_and_prefusion(tmp_path):
    config = CONFIG | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    convert(write_checkpoint(tmp_path / "input", config, all_tensors(config)), tmp_path / "output")
    model = load(tmp_path / "output").model
    plain = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    for rotary in (model.language_model.rotary_emb, model.prefusion.rotary_emb):
        torch.testing.assert_close(rotary.inv_freq, plain / 4)


def test_settings_that_say_nothing_get_the_authors_defaults(tmp_path):
    config = CONFIG | {"compressor_size": None, "mm_hidden_size": None}
    report = convert(write_checkpoint(tmp_path / "input", config, all_tensors(CONFIG)), tmp_path / "output")
    assert load(tmp_path / "output").config.compressor_size == 2
    assert report.filled["config compressor_size"] == "the authors' default, 2"


def test_tied_embeddings(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    tensors = all_tensors(config) | {"lm_head.weight": torch.zeros(CONFIG["vocab_size"], CONFIG["hidden_size"])}
    report = convert(write_checkpoint(tmp_path / "input", config, tensors), tmp_path / "output", verify=True)
    model = load(tmp_path / "output")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "tied" in report.ignored["lm_head.weight"]


def test_old_files_carry_constants_that_are_left_out(tmp_path):
    tensors = all_tensors(CONFIG)
    constants = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    constants["model.prefusion_layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    constants[f"{TOWER_PREFIX}vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    source = write_checkpoint(tmp_path / "input", CONFIG, tensors | constants, tower="inside")
    report = convert(source, tmp_path / "output", verify=True)
    assert set(report.ignored) == set(constants)
    assert runs(tmp_path / "output")


def test_every_source_key_is_used_or_ignored_and_every_target_filled(tmp_path):
    tensors = all_tensors(CONFIG)
    report = convert(write_checkpoint(tmp_path / "input", CONFIG, tensors), tmp_path / "output")
    towers = {f"vision_tower: {TOWER_PREFIX}{name}" for name in tower_tensors()}
    assert report.used.keys() == tensors.keys() | towers
    targets = [name for names in report.used.values() for name in names]
    assert sorted(targets) == sorted(read_weights(tmp_path / "output"))
    saved = json.loads((tmp_path / "output" / "original" / "conversion_report.json").read_text())
    assert {key: tuple(names) for key, names in saved["used"].items()} == report.used
    assert "tensors used" in str(report)


class TestTower:
    def test_named_on_the_command_line(self, tmp_path):
        config = CONFIG | {"mm_vision_tower": "somewhere/else"}
        source = write_checkpoint(tmp_path / "input", config, all_tensors(config))
        assert main([str(source), str(tmp_path / "output")]) == 2
        assert main([str(source), str(tmp_path / "output"), "--vision-tower", str(source / "vision_tower")]) == 0
        assert runs(tmp_path / "output")

    def test_not_named_at_all(self, tmp_path):
        config = {key: value for key, value in CONFIG.items() if key != "mm_vision_tower"}
        source = write_checkpoint(tmp_path / "input", config, all_tensors(config), tower="nowhere")
        with pytest.raises(ValueError, match="names no `mm_vision_tower`.*--vision-tower"):
            convert(source, tmp_path / "output")

    def test_whole_clip(self, tmp_path):
        whole = CLIPModel(CLIPConfig(vision_config=VISION, text_config={"num_hidden_layers": 1, "hidden_size": 64}))
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG), tower="nowhere")
        whole.save_pretrained(source / "vision_tower")
        report = convert(source, tmp_path / "output", verify=True)
        tower = load(tmp_path / "output").model.vision_tower.state_dict()
        theirs = whole.vision_model.state_dict()
        assert all(torch.equal(tower[name], theirs[name]) for name in tower)
        assert any("text_model" in name for name in report.ignored)

    def test_names_without_the_inner_level(self, tmp_path):
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG), tower="nowhere")
        write_tower(source / "vision_tower", {k.removeprefix("vision_model."): t for k, t in tower_tensors().items()})
        convert(source, tmp_path / "output", verify=True)
        assert_same_weights(
            tmp_path / "output",
            tower_tensors(),
            {"vision_model.pre_layrnorm.bias": "model.vision_tower.pre_layrnorm.bias"},
        )

    def test_inside_wins_over_beside(self, tmp_path):
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG), tower="inside")
        save_file(tower_tensors(seed=99), source / "vision_tower" / "model.safetensors")
        convert(source, tmp_path / "output")
        name = "encoder.layers.2.mlp.fc1.weight"
        weights = read_weights(tmp_path / "output")
        assert torch.equal(weights[f"model.vision_tower.{name}"], tower_tensors()[f"vision_model.{name}"])

    def test_of_another_type(self, tmp_path):
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
        change_json(source / "vision_tower" / "config.json", model_type="siglip_vision_model")
        with pytest.raises(ValueError, match="of type 'siglip_vision_model', but has to be a CLIP"):
            convert(source, tmp_path / "output")

    def test_with_other_weights_than_its_config(self, tmp_path):
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
        change_json(source / "vision_tower" / "config.json", image_size=56)
        with pytest.raises(ValueError, match="position_embedding.weight'.* instead of"):
            convert(source, tmp_path / "output")
        assert not (tmp_path / "output").exists()


class TestFirstStage:
    """`mm_projector.bin` over a base model."""

    @pytest.fixture
    def source(self, tmp_path):
        folder = tmp_path / "stage1"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_tower(folder / "vision_tower")
        torch.save(projector_tensors(CONFIG, seed=7), folder / "mm_projector.bin")
        return folder

    @pytest.fixture
    def language_model(self, tmp_path):
        folder = tmp_path / "llama"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        write_weights(folder, language_tensors(CONFIG))
        write_vicuna_tokenizer(folder)
        return folder

    def test_over_a_whole_checkpoint(self, tmp_path, source):
        base = write_checkpoint(tmp_path / "base", CONFIG, all_tensors(CONFIG), tower="nowhere")
        report = convert(source, tmp_path / "output", base_model=str(base), verify=True)
        weights = read_weights(tmp_path / "output")
        trained = projector_tensors(CONFIG, seed=7)
        assert torch.equal(
            weights["model.multi_modal_projector.linear_2.weight"], trained["model.mm_projector.2.weight"]
        )
        assert torch.equal(weights["model.compressor.query"], new_tensors(CONFIG)["model.compressor.query"])
        assert report.ignored[f"{base}: model.mm_projector.0.bias"] == "replaced by what was trained"

    def test_names_with_what_training_puts_before_them(self, tmp_path, source):
        base = write_checkpoint(tmp_path / "base", CONFIG, all_tensors(CONFIG), tower="nowhere")
        convert(source, tmp_path / "expected", base_model=str(base))
        tensors = {f"base_model.model.{name}": t for name, t in projector_tensors(CONFIG, seed=7).items()}
        torch.save(tensors, source / "mm_projector.bin")
        convert(source, tmp_path / "output", base_model=str(base))
        found, expected = read_weights(tmp_path / "output"), read_weights(tmp_path / "expected")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_tokenizer_is_the_base_models_unless_there_is_one(self, tmp_path, source):
        base = write_checkpoint(tmp_path / "base", CONFIG, all_tensors(CONFIG), tower="nowhere")
        convert(source, tmp_path / "output", base_model=str(base))
        kept = tmp_path / "output" / "original" / "tokenizer.json"
        assert kept.read_text() == (base / "tokenizer.json").read_text()
        write_vicuna_tokenizer(source)
        change_json(source / "tokenizer_config.json", model_max_length=77)
        convert(source, tmp_path / "other", base_model=str(base))
        assert AutoTokenizer.from_pretrained(tmp_path / "other").model_max_length == 77
        with pytest.raises(ValueError, match="holds the input"):
            convert(source, base, base_model=str(base), overwrite=True)

    def test_whole_checkpoint_over_a_base_model(self, tmp_path):
        whole = write_checkpoint(tmp_path / "whole", CONFIG, all_tensors(CONFIG))
        with pytest.raises(ValueError, match="holds a whole model.*leave out --base-model"):
            convert(whole, tmp_path / "output", base_model="some/model")

    def test_needs_a_base_model(self, tmp_path, source):
        with pytest.raises(ValueError, match="only what was trained.*--base-model"):
            convert(source, tmp_path / "output")

    def test_over_a_language_model_needs_to_know_how_new_parts_start(self, tmp_path, source, language_model):
        with pytest.raises(ValueError, match="missing, such as 'model.compressor.*--new-prefusion"):
            convert(source, tmp_path / "output", base_model=str(language_model))
        assert not (tmp_path / "output").exists()

    def test_command_line(self, tmp_path, source, language_model):
        (tmp_path / "mine.jinja").write_text("mine<image><video>")
        arguments = [source, tmp_path / "output", "--base-model", language_model, "--new-prefusion", "random"]
        assert main([*map(str, arguments), "--chat-template", str(tmp_path / "mine.jinja")]) == 0
        assert AutoProcessor.from_pretrained(tmp_path / "output").chat_template == "mine<image><video>"
        assert AutoTokenizer.from_pretrained(tmp_path / "output").chat_template == "mine<image><video>"

    @pytest.mark.parametrize("start", ["random", "language-model"])
    def test_over_a_language_model(self, tmp_path, source, language_model, start):
        report = convert(source, tmp_path / "output", base_model=str(language_model), new_prefusion=start, verify=True)
        model = load(tmp_path / "output").model
        first, prefusion = model.language_model.layers[0], model.prefusion.layers[0]
        assert torch.equal(first.mlp.up_proj.weight, prefusion.mlp.up_proj.weight) == (start == "language-model")
        assert torch.equal(model.prefusion.layers[1].input_layernorm.weight, torch.ones(32)) == (start == "random")
        # As a model made by transformers: normal weights of the configured size, no bias.
        assert 0.015 < model.compressor.q_proj.weight.std() < 0.025
        assert not model.compressor.q_proj.bias.any()
        assert torch.equal(model.compressor.key_norm.weight, torch.ones(32))
        table = AutoModelForImageTextToText.from_config(model.config).model.compressor.pos_embed
        torch.testing.assert_close(model.compressor.pos_embed, table)
        assert any("compressor" in name for name in report.filled)
        assert runs(tmp_path / "output")


def test_vocabulary_grows_where_no_id_is_spare(tmp_path):
    tensors = all_tensors(CONFIG)
    report = convert(write_checkpoint(tmp_path / "input", CONFIG, tensors), tmp_path / "output", verify=True)
    model, tokenizer = load(tmp_path / "output"), AutoTokenizer.from_pretrained(tmp_path / "output")
    size = CONFIG["vocab_size"]
    assert (tokenizer.image_token_id, tokenizer.video_token_id) == (size, size + 1)
    assert (model.config.image_token_id, model.config.video_token_id) == (size, size + 1)
    assert model.config.text_config.vocab_size == 320  # the next multiple of 64
    for name, ours in (("model.embed_tokens.weight", model.get_input_embeddings()), ("lm_head.weight", model.lm_head)):
        assert torch.equal(ours.weight[:size], tensors[name])
        torch.testing.assert_close(ours.weight[size:], tensors[name].mean(0).expand(16, -1))
    assert sum("rows 304 to 319" in name for name in report.filled) == 2


def test_vicuna_tokenizer_and_template(tmp_path):
    convert(write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG)), tmp_path / "output")
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "ab"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt.startswith("<s>You are a helpful") and prompt.endswith("USER: <image>\nab ASSISTANT:")
    assert processor.tokenizer.pad_token == "<unk>"


def test_template_of_ones_own(tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}:<im_start><image><im_end>{% endfor %}")
    config = CONFIG | {"mm_use_im_start_end": True}
    source = write_checkpoint(tmp_path / "input", config, all_tensors(config))
    with pytest.raises(ValueError, match="<im_start> and <im_end>.*--chat-template FILE"):
        convert(source, tmp_path / "output")
    with pytest.raises(ValueError, match="nothing.jinja does not exist"):
        convert(source, tmp_path / "output", chat_template=str(tmp_path / "nothing.jinja"))
    convert(source, tmp_path / "output", chat_template=str(template))
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor.apply_chat_template([{"role": "user", "content": "x"}]) == "user:<im_start><image><im_end>"
