# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The converter's parts one at a time, where a whole conversion would not show a fault."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from authors_layout import CONFIG, TOWER_PREFIX, all_tensors, change_json, write_checkpoint
from transformers import AutoProcessor, CLIPVisionConfig, CLIPVisionModel

from llava_mini import LlavaMiniConfig
from llava_mini.configuration_llava_mini import DEFAULT_VISION_CONFIG
from llava_mini.conversion.command import convert, split_rows
from llava_mini.conversion.mapping.key_mapping import ORIGINAL_TOWER, strip_training_prefix
from llava_mini.conversion.mapping.model_layout import common_dtype
from llava_mini.conversion.mapping.new_parts import ROWS_AT_A_TIME, fill_new_parts, grow_embeddings
from llava_mini.conversion.reading.checkpoint_io import LazyTensor
from llava_mini.conversion.reading.vision_tower import find_vision_tower
from llava_mini.conversion.writing.conversion_report import Report
from llava_mini.conversion.writing.to_original import DEFAULT_TOWER_NAME, _default_tower_name, to_original
from llava_mini.original_names_llava_mini import ignored_reason, rename_key, restore_key


GOLDEN = Path(__file__).parent / "golden"


def lazy(tensor):
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def unread(shape, dtype=torch.float32):
    """A tensor of which nobody needs the values."""
    return LazyTensor(tuple(shape), dtype, lambda: pytest.fail("was read"))


@pytest.mark.parametrize(
    "key",
    [
        "modelxnorm.weight",
        "model.mm_projector.0.weight_scale",
        "model.compressor.attn.in_proj_weight_scale",
        "model.compressor.query_scale",
    ],
)
def test_names_that_only_begin_like_ours_are_unknown(key):
    assert rename_key(key) == () and ignored_reason(key) is None


def test_only_constants_are_ignored():
    for key in (
        "model.layers.0.self_attn.rotary_emb.scale",
        "model.layers.0.position_ids",
        "model.embed_tokens.weight",
    ):
        assert ignored_reason(key) is None
    assert ignored_reason(f"{TOWER_PREFIX}vision_model.embeddings.class_embedding") is None
    assert restore_key("model.multi_modal_projector.linear_1.weight_scale", "linear") is None


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.mm_projector.0.bias"])
def test_what_training_puts_before_names(name):
    for prefix in ("", "base_model.model."):
        assert strip_training_prefix(prefix + name) == name
    assert strip_training_prefix(f"model.{name}") == name


def test_report_in_words():
    report = Report(used={"a": ("b",)}, ignored={"c": "why", "d": "why"}, filled={"e": "how"}, verified=["all"])
    assert str(report).split("\n") == [
        "1 tensors used, 2 entries ignored, 1 filled in",
        "  ignored c and 1 more: why",
        "  filled in e: how",
        "  verified: all",
    ]


def test_dtype_is_that_of_most_of_the_data():
    norms = {f"norm {i}": unread([8]) for i in range(9)}
    assert common_dtype(norms | {"matrix": unread([64, 64], torch.bfloat16)}) == torch.bfloat16


def test_packed_rows():
    parts = split_rows(lazy(torch.arange(8)), 3)
    assert [part.load().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert [part.shape for part in split_rows(unread([]), 3)] == [()] * 3


class TestReleasedTower:
    """The releases' tower inside a checkpoint is known by its shapes: nothing has to be fetched."""

    @pytest.fixture
    def tensors(self):
        with torch.device("meta"):
            model = CLIPVisionModel(CLIPVisionConfig(**DEFAULT_VISION_CONFIG))
        return {
            ORIGINAL_TOWER + name.removeprefix("vision_model."): unread(tensor.shape)
            for name, tensor in model.state_dict().items()
        }

    def find(self, tensors, folder, vision_tower=None):
        return find_vision_tower(folder, {"mm_vision_tower": "some/clip"}, tensors, vision_tower)

    def test_is_known(self, tensors, tmp_path):
        tower = self.find(tensors, tmp_path)
        assert {key: getattr(tower.config, key) for key in DEFAULT_VISION_CONFIG} == DEFAULT_VISION_CONFIG
        assert not tower.tensors and tower.directory is None

    def test_another_is_asked_for(self, tensors, tmp_path):
        layer = f"{ORIGINAL_TOWER}encoder.layers.23.mlp.fc1.weight"
        patches = f"{ORIGINAL_TOWER}embeddings.patch_embedding.weight"
        for other in (
            {k: t for k, t in tensors.items() if k != layer},
            tensors | {layer.replace(".23.", ".24."): tensors[layer]},
            tensors | {patches: unread([1024, 3, 16, 16])},
        ):
            with pytest.raises(ValueError, match="'some/clip' is neither"):
                self.find(other, tmp_path)

    def test_one_that_is_named_counts(self, tensors, tmp_path):
        with pytest.raises(ValueError, match="'other/clip' is neither"):
            self.find(tensors, tmp_path, vision_tower="other/clip")
        (tmp_path / "some/clip").mkdir(parents=True)
        (tmp_path / "some/clip/config.json").write_text(json.dumps(DEFAULT_VISION_CONFIG | {"projection_dim": 5}))
        assert self.find(tensors, tmp_path).config.projection_dim == 5


def test_added_rows_are_the_mean_of_all_rows_rounded_once():
    config = LlavaMiniConfig(text_config={"vocab_size": 2 * ROWS_AT_A_TIME, "tie_word_embeddings": True})
    config.image_token_id, config.video_token_id = 2 * ROWS_AT_A_TIME, 2 * ROWS_AT_A_TIME + 1
    # Sums of these in bfloat16 stop growing at a few hundred.
    matrix = torch.ones(2 * ROWS_AT_A_TIME, 2, dtype=torch.bfloat16)
    matrix[ROWS_AT_A_TIME:, 1] = 3
    tensors, report = {"model.language_model.embed_tokens.weight": lazy(matrix)}, Report()
    grow_embeddings(tensors, config, report)
    grown = tensors["model.language_model.embed_tokens.weight"]
    assert grown.load()[-64:].unique(dim=0).tolist() == [[1, 2]]
    assert grown.shape == grown.load().shape == (2 * ROWS_AT_A_TIME + 64, 2)
    assert len(report.filled) == 1  # the tied head has no rows of its own


def test_vocabulary_that_ends_with_the_placeholders_stays():
    config = LlavaMiniConfig(text_config={"vocab_size": 100}, image_token_id=98, video_token_id=99)
    report = Report()
    grow_embeddings({"lm_head.weight": unread([100, 4])}, config, report)
    assert config.text_config.vocab_size == 100 and not report.filled


def test_new_parts_differ_from_each_other_and_trained_ones_stay():
    config = LlavaMiniConfig(dtype="bfloat16")
    names = ["model.compressor.q_proj.weight", "model.compressor.k_proj.weight", "model.compressor.pos_embed"]
    trained = unread([4, 4])
    tensors = {"model.compressor.v_proj.weight": trained}
    shapes = dict.fromkeys([*names, *tensors], (4, 4)) | {"model.compressor.pos_embed": (1, 8)}
    fill_new_parts(tensors, shapes, config, "random", Report())
    query, key, positions = (tensors[name].load() for name in names)
    assert not torch.equal(query, key)
    assert {tensor.dtype for tensor in (query, key, positions)} == {torch.bfloat16}
    assert tensors["model.compressor.v_proj.weight"] is trained


PREPROCESSOR = {
    "do_resize": False,
    "size": {"shortest_edge": 30},
    "resample": 2,
    "do_center_crop": False,
    "crop_size": 28,
    "do_rescale": False,
    "rescale_factor": 0.5,
    "do_normalize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.mark.parametrize("size", [30, {"shortest_edge": 30}])
def test_every_setting_that_pixels_depend_on_comes_from_the_tower(tmp_path, size):
    source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
    (source / "vision_tower" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"size": size}))
    convert(source, tmp_path / "output")
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    expected = PREPROCESSOR | {"crop_size": {"height": 28, "width": 28}}
    for part in (processor.image_processor, processor.video_processor):
        found = {name: getattr(part, name) for name in expected}
        found |= {name: dict(found[name]) for name in ("size", "crop_size")}
        found["size"] = {"shortest_edge": found["size"].get("shortest_edge")}
        found |= {name: list(found[name]) for name in ("image_mean", "image_std")}
        assert found == expected


SMALL_FILES = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")


def test_small_files_come_back(tmp_path):
    source = write_checkpoint(tmp_path / "input", CONFIG, all_tensors(CONFIG))
    (source / "chat_template.jinja").write_text("mine: {{ messages[0]['content'] }}")
    (source / "tokenizer.model").write_bytes(b"\x00\xff")
    for name in SMALL_FILES:
        (source / name).write_text("{}")
    convert(source, tmp_path / "output")
    to_original(tmp_path / "output", tmp_path / "back")
    small = {
        path.name: path.read_bytes() for path in source.iterdir() if path.is_file() and "safetensors" not in path.name
    }
    assert {*SMALL_FILES, "tokenizer.json", "tokenizer.model", "tokenizer_config.json"} < small.keys()
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    for name in small.keys() - {"config.json"}:
        assert back[name] == small[name], name
    assert back.keys() - small.keys() == {"model.safetensors"}


def test_small_files_of_a_model_that_was_never_converted(converted, tmp_path):
    shutil.copytree(converted("standard"), tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "original")
    tower = str(GOLDEN / "standard" / "vision_tower")
    to_original(tmp_path / "model", tmp_path / "back", vision_tower=tower)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings["image_aspect_ratio"] == "pad" and settings["mm_vision_tower"] == tower
    assert (tmp_path / "back" / "generation_config.json").exists()
    processor = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    processor["image_processor"]["do_pad"] = False
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(processor))
    to_original(tmp_path / "model", tmp_path / "back", vision_tower=tower, overwrite=True)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_aspect_ratio"] == "square"
    (tmp_path / "model" / "processor_config.json").unlink()
    to_original(tmp_path / "model", tmp_path / "back", vision_tower=tower, overwrite=True)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_aspect_ratio"] == "pad"


@pytest.mark.parametrize(("known", "does_pad", "back"), [("anyres", False, "anyres"), ("anyres", True, "pad")])
def test_aspect_ratio_that_still_holds_goes_back(converted, tmp_path, known, does_pad, back):
    shutil.copytree(converted("standard"), tmp_path / "model")
    change_json(tmp_path / "model" / "original" / "config.json", image_aspect_ratio=known)
    path = tmp_path / "model" / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"]["do_pad"] = does_pad
    path.write_text(json.dumps(processor))
    to_original(tmp_path / "model", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_aspect_ratio"] == back


def test_way_back_looks_before_it_writes(converted, tmp_path, monkeypatch):
    shutil.copytree(converted("standard"), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty.*--overwrite"):
        to_original(tmp_path / "model", tmp_path / "full")
    with pytest.raises(ValueError, match="holds the input"):
        to_original(tmp_path / "model", tmp_path / "model", overwrite=True)
    shutil.copytree(GOLDEN / "standard" / "vision_tower", tmp_path / "towers" / "clip")
    with pytest.raises(ValueError, match="holds the input .*clip"):
        to_original(
            tmp_path / "model", tmp_path / "towers", overwrite=True, vision_tower=str(tmp_path / "towers" / "clip")
        )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0 if path.is_dir() else None}))
    with pytest.raises(ValueError, match="has 0.0 GB free"):
        to_original(tmp_path / "model", tmp_path / "not" / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "full", "towers"}
    assert (tmp_path / "full" / "notes.txt").exists() and (tmp_path / "towers" / "clip" / "config.json").exists()


def test_released_tower_needs_no_name():
    assert _default_tower_name(LlavaMiniConfig()) == DEFAULT_TOWER_NAME
