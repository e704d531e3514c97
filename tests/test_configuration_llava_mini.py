"""Configurations that can't be meant, and checkpoints that lack what their configuration describes."""

import copy
import json

import pytest
import torch
from authors_layout import copy_golden
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForImageTextToText

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniModel


# No huge numbers here: upstream's parts make lists as long as they say, and the system ends the process.
STRANGE = [None, 0, -1, 3, 0.5, -0.5, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1}, True]
# What says nothing about the model that is built, or is upstream's alone.
NOT_OURS = {
    "_name_or_path",
    "architectures",
    "id2label",
    "label2id",
    "model_type",
    "pruned_heads",
    "transformers_version",
}


def leaves(values, path=()):
    for name, value in values.items():
        if name not in NOT_OURS:
            yield (*path, name)
            if isinstance(value, dict):
                yield from leaves(value, (*path, name))


def changed(values, path, value=None):
    """A copy with another value, or, without a value given, with none."""
    values = copy.deepcopy(values)
    part = values
    for name in path[:-1]:
        part = part[name]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return values


def read_and_build(folder, values):
    """Reads the configuration and loads the weights, which is where an impossible one used to be found."""
    (folder / "config.json").write_text(json.dumps(values))
    try:
        AutoConfig.from_pretrained(folder)
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        if info["missing_keys"]:
            with pytest.raises(ValueError, match="lacks|missing keys"):
                AutoModelForImageTextToText.from_pretrained(folder)
    except (ValueError, OSError):  # OSError: a tower of another name is looked for
        return


@pytest.mark.slow
@pytest.mark.parametrize("share", range(2))
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_changed_configurations_are_read_or_refused(tmp_path, kind, share):
    """Settings with strange values, one in twenty of all pairs a test: nothing but ValueError comes out."""
    if kind == "ours":
        folder = tmp_path / "model"
        tiny_model().save_pretrained(folder)
    else:
        folder = copy_golden("high_resolution", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    cases = [(path, value) for path in leaves(values) for value in STRANGE]
    assert len(cases) > 900
    for path, value in cases[share::20]:
        read_and_build(folder, changed(values, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("compressor_size",), "x", "compressor_size.*expected int"),
        (("compressor_size",), 10**9, "`compressor_size` is 1000000000, but can be at most 256"),
        (("num_prefusion_layers",), 10**9, "at most 1000"),
        (("image_token_id",), -1, "`image_token_id` is -1, but has to be at least 0"),
        (("projector_hidden_act",), "glue", "`projector_hidden_act` is 'glue'"),
        (("compressor_layer_norm_eps",), float("nan"), "`compressor_layer_norm_eps` is nan"),
        (("dtype",), "int8", "`dtype` is torch.int8"),
        (("text_config", "num_hidden_layers"), 10**9, "`num_hidden_layers` is 1000000000"),
        (("vision_config", "num_hidden_layers"), 2**70, "`num_hidden_layers` is"),
        (("text_config", "vocab_size"), -1, "`text_config.vocab_size` is -1"),
        (("text_config", "num_key_value_heads"), 0, "`text_config.num_key_value_heads` is 0"),
        (("text_config", "num_key_value_heads"), 3, "4 attention heads, which 3 key-value heads"),
        (("text_config", "pad_token_id"), 10**6, "beyond its 96 tokens"),
        (("text_config", "rope_parameters"), {"rope_type": "new", "rope_theta": 1e4}, "no rotary embedding"),
        (("text_config", "rope_parameters", "rope_theta"), "x", "no rotary embedding"),
        (("vision_config", "image_size"), [28, 28], "`vision_config.image_size` is .28, 28., but has to be a whole"),
        (("vision_config", "patch_size"), 29, "more than the image's 28 pixels"),
        (("vision_config", "num_channels"), 1, "`vision_config.num_channels` is 1"),
        (("vision_config", "hidden_act"), "x", "`vision_config.hidden_act` is 'x'"),
        (("text_config", "output_hidden_states"), "yes", "output_hidden_states"),
    ],
)
def test_what_can_not_be_meant_is_refused_when_it_is_read(tmp_path, path, value, message):
    tiny_config().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(changed(values, path, value)))
    for reader in (AutoConfig, LlavaMiniConfig):
        with pytest.raises(ValueError, match=message):
            reader.from_pretrained(tmp_path)


class TestCheckpointsWithoutAPart:
    @pytest.fixture
    def folder(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(path).items() if ".prefusion." not in name}
        save_file(tensors, path, metadata={"format": "pt"})
        return tmp_path

    @pytest.mark.parametrize("model_class", [LlavaMiniForConditionalGeneration, LlavaMiniModel])
    def test_is_refused_unless_the_part_is_said_to_be_new(self, folder, model_class):
        with pytest.raises(ValueError, match=r"lacks 18 of the weights .*prefusion.*`new_parts="):
            model_class.from_pretrained(folder)
        with pytest.raises(ValueError, match="lacks 18"):
            model_class.from_pretrained(folder, new_parts=("compressor", "lm_head"))
        model = model_class.from_pretrained(folder, new_parts=("prefusion",))
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        with pytest.raises(ValueError, match=r"`new_parts` names \['fusion'\]"):
            model_class.from_pretrained(folder, new_parts=("fusion",))

    def test_who_asks_what_is_missing_is_told(self, folder):
        _, info = LlavaMiniForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert len(info["missing_keys"]) == 18

    def test_auto_classes_pass_it_on(self, folder):
        with pytest.raises(ValueError, match="lacks 18"):
            AutoModelForImageTextToText.from_pretrained(folder)
        AutoModelForImageTextToText.from_pretrained(folder, new_parts=("prefusion",))

    def test_a_head_that_is_tied_is_not_missing(self, tmp_path):
        model = tiny_model(tie_word_embeddings=True)
        model.save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        model = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        LlavaMiniModel.from_pretrained(tmp_path)

    def test_shards_and_devices(self, tmp_path):
        tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path, device_map="meta")

    def test_weights_of_other_shapes(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(values | {"compressor_size": 2}))
        with pytest.raises(ValueError, match="weights of other shapes than its configuration.*ignore_mismatched_sizes"):
            LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_the_authors_checkpoint_with_other_shapes(tmp_path):
    folder = copy_golden("standard", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match="mismatched keys such as .*mlp"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_configuration_made_on_the_meta_device():
    """As who builds a model without numbers writes it; what can't be meant is refused there too."""
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(tiny_config())
        with pytest.raises((ValueError, StrictDataclassError), match="no finite frequencies|no rotary embedding"):
            tiny_config(text={"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
