# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Tokens for images and videos: Llama 3.1's real vocabulary, made-up ones, and generation settings."""

import json
from pathlib import Path

import pytest
import torch
from authors_layout import CONFIG, all_tensors, change_json, read_weights, write_checkpoint, write_vicuna_tokenizer
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from llava_mini.conversion.command import convert
from llava_mini.conversion.mapping.tokenizer_conversion import (
    convert_generation_config,
    convert_tokenizer,
    has_tokenizer,
)
from llava_mini.original_tokenizer_llava_mini import choose_chat_template


# Ids of Llama 3.1's special tokens (the release's tokenizer_config.json); 0 to 247 are numbered in their order.
NAMED = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128004: "<|finetune_right_pad_id|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
    128010: "<|python_tag|>",
}
VOCABULARY_SIZE = 128256
STOP_IDS = [128009, 128008, 128001]
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
QUESTION = "What is the text on the cake? Describe it!"


@pytest.fixture(scope="module")
def llama_models():
    why = "Llama 3's vocabulary comes with llama-models, which is among the packages of the extra `test`"
    pytest.importorskip("tiktoken", reason=why)
    return pytest.importorskip("llama_models", reason=why)


@pytest.fixture(scope="module")
def llama3_source(llama_models, tmp_path_factory):
    """A tiny checkpoint with Llama 3.1's whole vocabulary, its tokenizer files as the release has them."""
    reserved = iter(range(VOCABULARY_SIZE))
    names = [NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(128000, VOCABULARY_SIZE)]
    vocabulary_file = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    tokenizer = TikTokenConverter(str(vocabulary_file), extra_special_tokens=names).converted()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{NAMED[128000]} $A", special_tokens=[(NAMED[128000], 128000)]
    )
    folder = tmp_path_factory.mktemp("llama3") / "input"
    config = CONFIG | {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 128000, "eos_token_id": STOP_IDS}
    write_checkpoint(folder, config, all_tensors(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "added_tokens_decoder": {str(128000 + i): {"content": name} | flags for i, name in enumerate(names)},
        "bos_token": NAMED[128000],
        "eos_token": NAMED[128009],
        "clean_up_tokenization_spaces": True,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    ids = {"bos_token_id": 128000, "eos_token_id": STOP_IDS}
    (folder / "generation_config.json").write_text(json.dumps(ids | sampling))
    return folder


@pytest.fixture(scope="module")
def llama3_output(llama3_source):
    convert(llama3_source, llama3_source.parent / "output")
    return llama3_source.parent / "output"


@pytest.fixture(scope="module")
def processor(llama3_output):
    return AutoProcessor.from_pretrained(llama3_output)


def test_llama3_placeholders_take_reserved_ids(llama3_source, llama3_output, processor):
    tokenizer, config = processor.tokenizer, AutoConfig.from_pretrained(llama3_output)
    assert (tokenizer.image_token_id, tokenizer.video_token_id) == (128254, 128255)
    assert (config.image_token_id, config.video_token_id) == (128254, 128255)
    assert len(tokenizer) == config.text_config.vocab_size == VOCABULARY_SIZE
    assert tokenizer("<image>", add_special_tokens=False).input_ids == [128254]
    assert "<|reserved_special_token_247|>" not in tokenizer.get_vocab()
    embeddings = read_weights(llama3_output)["model.language_model.embed_tokens.weight"]
    assert torch.equal(embeddings, read_weights(llama3_source)["model.embed_tokens.weight"])


def test_llama3_all_other_ids_stay(llama3_source, processor):
    before = Tokenizer.from_file(str(llama3_source / "tokenizer.json")).get_vocab()
    after = processor.tokenizer.get_vocab()
    assert after["!"] == 0
    assert {token for token in before if after.get(token) != before[token]} == {
        "<|reserved_special_token_246|>",
        "<|reserved_special_token_247|>",
    }
    assert {after[token]: token for token in NAMED.values()} == NAMED


def test_llama3_default_prompt_is_metas_ids(processor, llama_models):
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor.tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids.count(128000) == 1
    parts = (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        f"\n{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    meta = MetaTokenizer.get_instance()
    before, after = (meta.encode(part, bos=False, eos=False, allowed_special="all") for part in parts)
    assert ids == before + [128254] + after
    assert 0 in processor.tokenizer("Describe it!", add_special_tokens=False).input_ids


def test_llama3_chat_has_one_begin_of_text(processor):
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert inputs["input_ids"][0].count(128000) == 1


def test_llama3_generation_settings(llama3_output, processor):
    settings = GenerationConfig.from_pretrained(llama3_output)
    assert settings.eos_token_id == STOP_IDS and settings.bos_token_id == 128000
    assert settings.pad_token_id == processor.tokenizer.pad_token_id == 128004
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)


def write_tokenizer(folder, special, **settings):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    write_vicuna_tokenizer(tmp_path)
    return tmp_path


def test_tokens_that_the_vocabulary_has_already_are_used(folder):
    write_tokenizer(folder, ["<video>", "<|reserved_special_token_0|>", "<image>"], eos_token="</s>")
    tokenizer, placed = convert_tokenizer(folder)
    assert [placed[token].token_id for token in ("<image>", "<video>")] == [306, 304]
    assert placed["<image>"].origin == "the tokenizer's own"
    assert tokenizer.convert_ids_to_tokens(305) == "<|reserved_special_token_0|>"


def test_one_token_is_there_and_one_takes_a_reserved_place(folder):
    write_tokenizer(folder, ["<video>", *(f"<|reserved_special_token_{i}|>" for i in range(2))], eos_token="</s>")
    tokenizer, placed = convert_tokenizer(folder)
    assert [placed[token].token_id for token in ("<image>", "<video>")] == [306, 304]
    assert tokenizer.convert_ids_to_tokens([304, 305, 306]) == ["<video>", "<|reserved_special_token_0|>", "<image>"]
    # In every file, or other readers of the tokenizer still know the old name.
    tokenizer.save_pretrained(folder)
    assert not any("reserved_special_token_1" in path.read_text() for path in folder.glob("*.json"))


def test_one_reserved_token_is_not_enough_for_two(folder):
    write_tokenizer(folder, ["<|reserved_special_token_0|>"], eos_token="</s>")
    _, placed = convert_tokenizer(folder)
    assert [placed[token].token_id for token in ("<image>", "<video>")] == [305, 306]


def test_reserved_tokens_are_taken_by_their_number(folder):
    write_tokenizer(folder, [f"<|reserved_special_token_{i}|>" for i in (10, 2, 9)], eos_token="</s>")
    _, placed = convert_tokenizer(folder)
    assert placed["<image>"].origin == "in the place of <|reserved_special_token_9|>"
    assert (placed["<image>"].token_id, placed["<video>"].token_id) == (306, 304)


def test_settings_alone_are_no_tokenizer(folder):
    assert has_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    assert not has_tokenizer(folder)


def test_template_of_the_source_is_not_the_converted_ones(tmp_path):
    source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
    (source / "chat_template.jinja").write_text("theirs")
    convert(source, tmp_path / "output")
    for auto_class in (AutoTokenizer, AutoProcessor):
        assert "ASSISTANT" in auto_class.from_pretrained(tmp_path / "output").chat_template


def test_the_source_is_not_touched(folder):
    write_tokenizer(folder, [f"<|reserved_special_token_{i}|>" for i in range(3)], eos_token="</s>")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    convert_tokenizer(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_pad_token_of_its_own_is_kept(folder):
    change_json(folder / "tokenizer_config.json", pad_token="</s>")
    assert convert_tokenizer(folder)[0].pad_token == "</s>"


def test_without_unknown_token_the_end_pads(folder):
    change_json(folder / "tokenizer_config.json", unk_token=None)
    assert convert_tokenizer(folder)[0].pad_token == "</s>"


def test_padding_side_and_names_survive_saving(folder, tmp_path):
    tokenizer, _ = convert_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.padding_side, again.image_token, again.video_token) == ("left", "<image>", "<video>")


def test_template_has_to_be_named_for_an_unknown_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", eos_token="ab")
    tokenizer, _ = convert_tokenizer(folder)
    with pytest.raises(ValueError, match="neither Llama 3's nor Vicuna's.*--chat-template"):
        choose_chat_template(None, tokenizer, {})
    assert "ASSISTANT" in choose_chat_template("vicuna_v1", tokenizer, {})


def test_a_sentencepiece_file_alone_says_what_it_needs(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ValueError, match="can't be read.*pip install sentencepiece protobuf"):
        convert_tokenizer(tmp_path)


class TestGenerationSettings:
    def convert(self, folder, settings=None, **config):
        if settings is not None:
            (folder / "generation_config.json").write_text(json.dumps(settings))
        return convert_generation_config(folder, config, convert_tokenizer(folder)[0])

    def test_without_a_file_the_ids_come_from_the_configuration(self, folder):
        settings, left_out = self.convert(folder, bos_token_id=1, eos_token_id=[2, 5])
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, [2, 5], 0)
        assert not settings.do_sample and not left_out

    def test_without_any_ids_they_come_from_the_tokenizer(self, folder):
        assert self.convert(folder, {})[0].eos_token_id == 2

    def test_ids_that_the_file_lacks_come_from_the_configuration(self, folder):
        settings, _ = self.convert(folder, {"do_sample": True, "top_p": 0.6}, eos_token_id=[2, 5])
        assert (settings.eos_token_id, settings.pad_token_id, settings.top_p) == ([2, 5], 0, 0.6)

    def test_pad_id_of_file_or_configuration_is_kept(self, folder):
        assert self.convert(folder, pad_token_id=9)[0].pad_token_id == 9
        assert self.convert(folder, {"pad_token_id": 7})[0].pad_token_id == 7

    def test_sampling_settings_that_have_no_effect_are_left_out(self, folder, tmp_path):
        sampling = {"temperature": 0.9, "top_p": 0.6, "top_k": 5, "min_p": 0.1, "typical_p": 0.8}
        settings, left_out = self.convert(folder, sampling | {"max_length": 4096})
        assert left_out == list(sampling) and settings.max_length == 4096
        settings.save_pretrained(tmp_path / "saved")  # transformers would refuse

    def test_the_report_names_them(self, tmp_path):
        source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
        (source / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
        report = convert(source, tmp_path / "output")
        assert report.ignored == {"generation_config temperature": "sampling is off"}
