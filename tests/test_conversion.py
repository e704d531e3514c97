# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The converter on the authors' golden checkpoints: names, numbers, bad input."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig, pipeline

import llava_mini  # noqa: F401 (registers the Auto classes)
from llava_mini.conversion.command import convert, main
from llava_mini.conversion.reading import checkpoint_io
from llava_mini.conversion.reading.checkpoint_io import LazyTensor, find_local, read_checkpoint
from llava_mini.conversion.writing.to_original import to_original
from llava_mini.conversion.writing.verification import verify
from llava_mini.original_names_llava_mini import ignored_reason, rename_key


GOLDEN = Path(__file__).parent / "golden"
CASES = ("standard", "high_resolution")
# The authors' float32 numbers on CPU; sums are taken in another order here.
TOLERANCE = 1e-5
# Where the authors' code has an image among the ids.
ORIGINAL_IMAGE_ID = -200


@pytest.fixture
def original(tmp_path):
    """A copy of golden/standard to spoil."""
    shutil.copytree(GOLDEN / "standard", tmp_path / "standard")
    return tmp_path / "standard" / "original"


def place(ids, token_id, count):
    """The authors' ids with `count` placeholders where they have one."""
    rows = [
        torch.cat([torch.full((count,), token_id) if i == ORIGINAL_IMAGE_ID else i[None] for i in row]) for row in ids
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("model.embed_tokens.weight", ["model.language_model.embed_tokens.weight"]),
        ("model.layers.31.mlp.up_proj.weight", ["model.language_model.layers.31.mlp.up_proj.weight"]),
        ("model.norm.weight", ["model.language_model.norm.weight"]),
        ("lm_head.weight", ["lm_head.weight"]),
        ("model.prefusion_layers.3.self_attn.o_proj.weight", ["model.prefusion.layers.3.self_attn.o_proj.weight"]),
        ("model.mm_projector.weight", ["model.multi_modal_projector.linear_1.weight"]),
        ("model.mm_projector.0.bias", ["model.multi_modal_projector.linear_1.bias"]),
        ("model.mm_projector.2.weight", ["model.multi_modal_projector.linear_2.weight"]),
        ("model.mm_projector.10.weight", ["model.multi_modal_projector.linear_6.weight"]),
        ("model.compressor.query", ["model.compressor.query"]),
        ("model.compressor.pos_embed", ["model.compressor.pos_embed"]),
        ("model.compressor.ln_q.bias", ["model.compressor.query_norm.bias"]),
        ("model.compressor.ln_kv.weight", ["model.compressor.key_norm.weight"]),
        ("model.compressor.attn.out_proj.bias", ["model.compressor.out_proj.bias"]),
        (
            "model.compressor.attn.in_proj_weight",
            [f"model.compressor.{part}_proj.weight" for part in ("q", "k", "v")],
        ),
        (
            "model.vision_tower.vision_tower.vision_model.encoder.layers.2.layer_norm1.weight",
            ["model.vision_tower.encoder.layers.2.layer_norm1.weight"],
        ),
        ("model.mm_projector.1.weight", []),
        ("xmodel.norm.weight", []),
        ("lm_head.weights", []),
        ("model.layers", []),
    ],
)
def test_rename_key(key, names):
    assert list(rename_key(key)) == names


def test_ignored_keys_have_reasons():
    assert ignored_reason("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert ignored_reason("model.vision_tower.vision_tower.vision_model.embeddings.position_ids")
    assert ignored_reason("model.layers.0.self_attn.q_proj.weight") is None


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_arrives_unchanged(converted, case):
    source = read_checkpoint(GOLDEN / case / "original")
    tower = load_file(GOLDEN / case / "vision_tower" / "model.safetensors")
    source = {key: tensor.load() for key, tensor in source.items()}
    source |= {f"model.vision_tower.vision_tower.{key}": tensor for key, tensor in tower.items()}
    targets = load_file(converted(case) / "model.safetensors")
    for key, tensor in source.items():
        names = rename_key(key)
        assert torch.equal(torch.cat([targets.pop(name) for name in names]) if names else None, tensor), key
    assert not targets


@pytest.mark.parametrize("case", CASES)
def test_converted_checkpoint_gives_the_authors_numbers(converted, case):
    model, info = AutoModelForImageTextToText.from_pretrained(converted(case), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = load_file(GOLDEN / case / "tensors.safetensors")
    config = model.config
    ids = place(expected["image.input_ids"], config.image_token_id, config.num_image_tokens)
    pixels = expected["image.images"]
    frames = expected["video.images"]
    video_ids = place(expected["video.input_ids"], config.video_token_id, config.num_image_tokens * frames.shape[1])
    with torch.no_grad():
        image_logits = model(input_ids=ids, pixel_values=pixels).logits
        video_logits = model(input_ids=video_ids, pixel_values_videos=frames).logits
    torch.testing.assert_close(image_logits, expected["image.logits"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(video_logits, expected["video.logits"], rtol=0, atol=TOLERANCE)
    generated = model.generate(
        input_ids=ids, pixel_values=pixels, max_new_tokens=expected["image.generated"].shape[1], do_sample=False
    )
    assert torch.equal(generated[:, ids.shape[1] :], expected["image.generated"])


@pytest.mark.parametrize("case", CASES)
def test_tokenizer_and_generation_settings(converted, case):
    tokenizer = AutoTokenizer.from_pretrained(converted(case))
    assert (tokenizer.image_token, tokenizer.video_token, tokenizer.padding_side) == ("<image>", "<video>", "left")
    # The first ids that the vocabulary leaves unused: the embeddings need no new rows.
    assert tokenizer("<image><video>").input_ids == [402, 403]
    settings = GenerationConfig.from_pretrained(converted(case))
    assert settings.eos_token_id == [397, 401]
    assert settings.pad_token_id == tokenizer.pad_token_id == 398
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)
    prompt = json.loads((GOLDEN / case / "case.json").read_text())["prompt"]
    ids = load_file(GOLDEN / case / "tensors.safetensors")["image.input_ids"]
    assert tokenizer(prompt, add_special_tokens=False).input_ids == place(ids, 402, 1)[0].tolist()


@pytest.mark.parametrize("case", CASES)
def test_processor_writes_the_authors_prompt(converted, case):
    processor = AutoProcessor.from_pretrained(converted(case))
    expected = json.loads((GOLDEN / case / "case.json").read_text())
    question = {"type": "text", "text": "What is the text on the cake? Describe it!"}
    messages = [{"role": "user", "content": [{"type": "image"}, question]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected["prompt"]
    config = json.loads((converted(case) / "config.json").read_text())
    assert processor.compressor_size == config["compressor_size"]
    assert processor.image_processor.do_pad and not processor.video_processor.do_pad
    for part in (processor.image_processor, processor.video_processor):
        assert part.resolution_ratio == config["resolution_ratio"]
        assert (part.crop_size["height"], part.size["shortest_edge"]) == (56, 56)


def test_pipeline_answers_from_a_converted_checkpoint(converted):
    ask = pipeline("image-text-to-text", model=str(converted("high_resolution")))
    image = {"type": "image", "path": str(GOLDEN / "preprocess" / "image1.png")}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]
    answer = ask(chat, generate_kwargs={"max_new_tokens": 4, "do_sample": False})
    assert answer[0]["generated_text"][-1]["content"]


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_config(original, **changes):
    change_json(original / "config.json", **changes)


def change_shard(original, change):
    path = original / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def remove_key(original):
    index = original / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    shard = original / "model-00002-of-00002.safetensors"
    for path in (original / "model-00001-of-00002.safetensors", shard):
        tensors = load_file(path)
        tensors.pop("model.norm.weight", None)
        save_file(tensors, path)


def truncate(original):
    path = original / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD_INPUT = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "can't be read as JSON"),
    "config is no text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "can't be read as JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "holds no JSON object"),
    "impossible size": (lambda folder: change_config(folder, vocab_size=-1), "No model can be built from"),
    "unknown rope": (lambda folder: change_config(folder, rope_scaling={"type": "new"}), "No model can be built from"),
    "rope lacks a number": (
        lambda folder: change_config(folder, rope_scaling={"rope_type": "linear"}),
        "describes no model that exists here.*factor",
    ),
    "no weights": (lambda folder: [p.unlink() for p in folder.glob("model*")], "has no weights"),
    "shard missing": (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "is missing, but"),
    "shard truncated": (truncate, "can't be read .*truncated, damaged or no weights file"),
    "tensor missing": (remove_key, "1 tensor.s. are missing, such as 'model.language_model.norm.weight'"),
    "tensor unknown": (
        lambda folder: change_shard(folder, lambda t: t.update({"model.extra": torch.zeros(1)})),
        "unexpected names, such as 'model.extra'",
    ),
    "layer too many": (lambda folder: change_config(folder, prefusion_layer_num=1), "are unexpected, such as"),
    "wrong shape": (lambda folder: change_config(folder, intermediate_size=64), "have the wrong shape"),
    "unknown projector": (lambda folder: change_config(folder, mm_projector_type="qformer"), "is not supported"),
    "projector is a number": (lambda folder: change_config(folder, mm_projector_type=5), "5, which is not supported"),
    "class token kept": (lambda folder: change_config(folder, mm_vision_select_feature="cls_patch"), "not square"),
    "tower does not fit": (lambda folder: change_config(folder, mm_hidden_size=48), "of width 48"),
    "tower contradicts itself": (
        lambda folder: change_json(folder.parent / "vision_tower" / "config.json", num_attention_heads=5),
        "describes no CLIP.*not a multiple",
    ),
    "tower is a number": (lambda folder: change_config(folder, mm_vision_tower=5), "5 as `mm_vision_tower`"),
    "features in a list": (
        lambda folder: change_config(folder, mm_vision_select_feature=["patch"]),
        "'patch'.*but has",
    ),
    "tower not found": (lambda folder: change_config(folder, mm_vision_tower="../nowhere"), "--vision-tower"),
    "crops of another size": (
        lambda folder: change_json(folder.parent / "vision_tower" / "preprocessor_config.json", crop_size=42),
        "crops to .* 42",
    ),
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("*token*")], "The tokenizer in"),
    "tokenizer is a list": (lambda folder: (folder / "tokenizer.json").write_text("[1]"), "The tokenizer in"),
    "generation settings are a list": (
        lambda folder: (folder / "generation_config.json").write_text("[1]"),
        "generation_config.json holds no JSON object",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_and_nothing_is_written(original, tmp_path, capsys, name):
    spoil, message = BAD_INPUT[name]
    spoil(original)
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=message):
        convert(original, output)
    assert main([str(original), str(output)]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["standard"]


def test_output_is_only_replaced_when_asked(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    source = GOLDEN / "standard" / "original"
    with pytest.raises(ValueError, match="is not empty.*--overwrite"):
        convert(source, output)
    assert main([str(source), str(output)]) == 2
    assert (output / "notes.txt").exists()
    with pytest.raises(ValueError, match="is a file: give a directory"):
        convert(source, output / "notes.txt", overwrite=True)
    assert main([str(source), str(output), "--overwrite"]) == 0
    assert (output / "config.json").exists() and not (output / "notes.txt").exists()


def test_the_input_is_never_replaced(original):
    tower = original.parent / "vision_tower"
    for output in (original, original.parent, tower):
        with pytest.raises(ValueError, match="holds the input"):
            convert(original, output, overwrite=True)
        assert main([str(original), str(output), "--overwrite"]) == 2
    assert (original / "config.json").exists() and (tower / "model.safetensors").exists()


def test_wrong_directory(tmp_path, converted):
    with pytest.raises(ValueError, match="nowhere' is neither a directory nor a Hub repository"):
        convert(tmp_path / "nowhere", tmp_path / "output")
    with pytest.raises(ValueError, match="is converted already: .*--to-original"):
        convert(converted("standard"), tmp_path / "output")


def test_output_behind_a_link(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    convert(GOLDEN / "standard" / "original", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target" / "config.json").exists()


def test_repositories_on_the_hub(tmp_path, monkeypatch, original):
    change_config(original, mm_vision_tower="someone/tower")
    folders = {"someone/checkpoint": original, "someone/tower": original.parent / "vision_tower"}
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        if name not in folders:
            raise OSError("unreachable")
        return str(folders[name])

    monkeypatch.setattr(checkpoint_io, "snapshot_download", download)
    convert("someone/checkpoint", tmp_path / "output", verify=True)
    # A repository may hold the same weights in other frameworks' files too.
    assert {"*.json", "*.safetensors", "*.bin", "tokenizer.model"} <= set(asked["someone/checkpoint"])
    assert {"config.json", "preprocessor_config.json", "*.safetensors"} <= set(asked["someone/tower"])
    assert not {"*", "*.h5", "*.msgpack"} & {pattern for patterns in asked.values() for pattern in patterns}
    with pytest.raises(ValueError, match="'no/one' is neither a directory nor a Hub repository"):
        convert("no/one", tmp_path / "other")


def test_names_of_directories_are_seen_from_the_checkpoint_first(tmp_path, monkeypatch):
    for name in ("checkpoint/tower", "tower", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    assert find_local("tower", checkpoint).resolve() == checkpoint / "tower"
    assert find_local("elsewhere", checkpoint).resolve() == tmp_path / "elsewhere"
    assert find_local("nowhere", checkpoint) is None


@pytest.mark.parametrize(
    "options", ["--verify --to-original", "--push-to-hub me/it --to-original", "--card-facts card.json"]
)
def test_options_that_would_do_nothing_are_refused(tmp_path, capsys, options):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "output"), *options.split()])
    assert f"error: {options.split()[0]} is for " in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_no_model_should_have_are_told(original, tmp_path, capsys, value):
    path = original / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    for key in sorted(tensors)[:2]:
        tensors[key].flatten()[1] = value
    save_file(tensors, path)
    assert main([str(original), str(tmp_path / "output")]) == 0
    (line,) = [line for line in capsys.readouterr().out.split("\n") if "NaN" in line]
    assert rename_key(name)[0] in line and " and 1 more: holds NaN or infinite values" in line
    report = json.loads((tmp_path / "output" / "original" / "conversion_report.json").read_text())
    assert len(report["not_finite"]) == 2
    to_original(tmp_path / "output", tmp_path / "back")
    with pytest.raises(ValueError, match=f"{re.escape(rename_key(name)[0])} in .* holds NaN or infinite"):
        convert(original, tmp_path / "verified", verify=True)
    assert not (tmp_path / "verified").exists()
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        verify(tmp_path / "output")


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "float8_e4m3fn", "float8_e5m2", "complex64", "uint8"])
@pytest.mark.parametrize("share", ["all", "one"])
def test_what_holds_no_weights_is_refused(original, tmp_path, dtype, share):
    def cast(tensors):
        for name in sorted(tensors) if share == "all" else sorted(tensors)[:1]:
            tensors[name] = tensors[name].to(getattr(torch, dtype))

    change_shard(original, cast)
    with pytest.raises(ValueError, match=rf"tensor.s. hold torch.{dtype}, such as .* but weights are float16"):
        convert(original, tmp_path / "output")


class TestVerification:
    """What `--verify` finds; the directories are converted ones, spoilt."""

    @pytest.fixture
    def directory(self, converted, tmp_path):
        shutil.copytree(converted("standard"), tmp_path / "converted")
        return tmp_path / "converted"

    def change(self, directory, change):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    @pytest.mark.parametrize("case", CASES)
    def test_good_conversion_is_found_good(self, converted, case):
        findings = verify(converted(case), read_checkpoint(converted(case)), GOLDEN / case)
        assert len(findings) == 4 and "logits equal the authors'" in findings[-1]

    def test_command_line_prints_the_findings(self, tmp_path, capsys):
        arguments = [str(GOLDEN / "standard" / "original"), str(tmp_path / "output"), "--verify"]
        assert main([*arguments, "--expected", str(GOLDEN / "standard")]) == 0
        assert capsys.readouterr().out.count("verified: ") == 4
        assert main([*arguments, "--overwrite"]) == 0
        assert capsys.readouterr().out.count("verified: ") == 3

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda path: path.unlink(), "has no weights: expected one of tensors.safetensors"),
            (lambda path: path.write_bytes(path.read_bytes()[:-9]), "can't be read"),
            (lambda path: save_file({"image.logits": torch.zeros(1)}, path), "lacks 'image.input_ids': --expected"),
        ],
    )
    def test_expected_numbers_are_looked_at_before_anything_is_written(self, original, tmp_path, spoil, message):
        spoil(original.parent / "tensors.safetensors")
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "never looked at", tmp_path / "output", expected=original.parent)

    def test_expected_numbers_of_a_bigger_vocabulary(self, original, tmp_path):
        numbers = load_file(original.parent / "tensors.safetensors")
        numbers["text.input_ids"] = numbers["text.input_ids"] + 1000
        save_file(numbers, original.parent / "tensors.safetensors")
        with pytest.raises(ValueError, match="can't read the authors' text input.*don't belong together"):
            convert(original, tmp_path / "output", expected=original.parent)

    def test_result_that_does_not_verify_does_not_appear(self, original, tmp_path):
        change_shard(original, lambda tensors: tensors["model.embed_tokens.weight"].mul_(1.001))
        with pytest.raises(ValueError, match="image logits differ from the authors' by"):
            convert(original, tmp_path / "output", expected=GOLDEN / "standard")
        assert [path.name for path in tmp_path.iterdir()] == ["standard"]

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda tensors: tensors.pop("lm_head.weight"), "missing keys: .'lm_head.weight'"),
            (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected keys: .'extra'"),
            (lambda tensors: tensors.update({"model.compressor.query": torch.zeros(3, 32)}), "mismatched keys"),
            # A tower layer past the selected one: no model would miss it.
            (lambda tensors: tensors.pop("model.vision_tower.encoder.layers.2.layer_norm1.bias"), "does not hold what"),
            (
                lambda tensors: tensors.update(
                    {"model.vision_tower.encoder.layers.2.layer_norm1.bias": torch.zeros(3)}
                ),
                "does not hold what",
            ),
            (
                lambda tensors: tensors.update(
                    {"model.vision_tower.encoder.layers.3.layer_norm1.bias": torch.zeros(3)}
                ),
                "unexpected keys|does not hold what",
            ),
        ],
    )
    def test_wrong_tensors(self, directory, spoil, message):
        self.change(directory, spoil)
        with pytest.raises(ValueError, match=message):
            verify(directory)

    def test_flipped_bit(self, directory):
        intended = read_checkpoint(directory)
        query = -intended["model.compressor.query"].load()
        intended["model.compressor.query"] = LazyTensor(tuple(query.shape), query.dtype, lambda: query)
        with pytest.raises(ValueError, match="model.compressor.query in .* is not what was to be written"):
            verify(directory, intended)

    @pytest.mark.parametrize("change", [lambda t: t * 1.0001, lambda t: t.double(), lambda t: t[None], lambda t: -t])
    def test_values_are_compared_bit_by_bit(self, directory, change):
        # A bias of zeros: minus zero is another bit.
        name = "model.compressor.q_proj.bias"
        self.change(directory, lambda tensors: tensors[name].copy_(torch.arange(len(tensors[name]))))
        intended = read_checkpoint(directory)
        other = change(intended[name].load())
        intended[name] = LazyTensor(tuple(other.shape), other.dtype, lambda: other)
        with pytest.raises(ValueError, match="is not what was to be written"):
            verify(directory, intended)
        intended[name] = read_checkpoint(directory)[name]
        assert len(verify(directory, intended)) == 3

    @pytest.mark.parametrize("name", ["image", "video", "batch", "text"])
    def test_each_of_the_authors_cases_counts(self, original, converted, name):
        numbers = load_file(original.parent / "tensors.safetensors")
        for value in (2e-5, float("nan")):
            logits = numbers[f"{name}.logits"].clone()
            logits.flatten()[0] += value
            save_file(numbers | {f"{name}.logits": logits}, original.parent / "tensors.safetensors")
            with pytest.raises(ValueError, match=f"{name} logits differ.*more than 1e-05"):
                verify(converted("standard"), expected=original.parent)

    @pytest.mark.parametrize(
        ("path", "change", "message"),
        [
            ("config.json", {"dtype": "bfloat16"}, "holds torch.float32, but its config.json says torch.bfloat16"),
            ("config.json", {"image_token_id": 5}, "image token 402, but the model needs 5"),
            ("config.json", {"video_token_id": 5}, "video token 403, but the model needs 5"),
            ("config.json", {"resolution_ratio": 3}, "resolution_ratio 1, but the model needs 3"),
            ("processor_config.json", {"compressor_size": 2}, "compressor_size 2, but the model needs 1"),
            ("tokenizer_config.json", {"padding_side": "right"}, "padding side 'right'"),
        ],
    )
    def test_files_of_another_model(self, directory, path, change, message):
        change_json(directory / path, **change)
        with pytest.raises(ValueError, match=message):
            verify(directory)

    def test_crops_of_another_size(self, directory):
        path = directory / "processor_config.json"
        image_processor = json.loads(path.read_text())["image_processor"]
        change_json(path, image_processor=image_processor | {"crop_size": {"height": 42, "width": 42}})
        with pytest.raises(ValueError, match="crop height 42, but the model needs 56"):
            verify(directory)

    @pytest.mark.parametrize("template", ["<image>", "<video>", "<image><image><video>", "<image><video><video>"])
    def test_template_with_other_placeholders(self, directory, template):
        (directory / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match="does not write one placeholder"):
            verify(directory)

    def test_template_with_a_mistake(self, directory):
        (directory / "chat_template.jinja").write_text("{% for %}")
        with pytest.raises(ValueError, match="can't be used .*--chat-template"):
            verify(directory)

    def test_template_without_placeholders(self, directory):
        (directory / "chat_template.jinja").write_text("{{ bos_token }}")
        with pytest.raises(ValueError, match="does not write one placeholder"):
            verify(directory)
