"""transformers' ModelTesterMixin and ConfigTester on LLaVA-Mini."""

import unittest
from unittest.mock import patch

import pytest
import torch
import upstream_archive
from tiny import IMAGE_ID, IMAGE_SIZE, VIDEO_ID, tiny_config
from transformers.models.auto import modeling_auto

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniModel, LlavaMiniPreTrainedModel


modeling_common = upstream_archive.load("test_modeling_common")
configuration_common = upstream_archive.load("test_configuration_common")


@pytest.fixture(scope="module", autouse=True)
def names_known_to_upstream():
    """The mixin looks up class names to decide what a class can do, and silently leaves out what it doesn't find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "llava_mini", "LlavaMiniModel")
        for names in (
            modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        ):
            patch.setitem(names, "llava_mini", "LlavaMiniForConditionalGeneration")
        yield


class LlavaMiniModelTester:
    """What the mixin asks a model's own test for: a tiny configuration and a batch."""

    batch_size = 7  # the mixin's largest; smaller ones it would fill up with random ids, placeholders among them
    is_training = True
    hidden_size = 32
    num_attention_heads = 4
    num_hidden_layers = 2
    image_size = IMAGE_SIZE
    num_text_tokens = 6

    def __init__(self, parent):
        self.parent = parent
        config = self.get_config()
        self.num_placeholders = config.num_image_tokens
        self.seq_length = self.encoder_seq_length = self.num_placeholders + self.num_text_tokens
        # The tower is built up to the selected layer only.
        self.vision_config = self.video_config = {"num_hidden_layers": config.num_vision_layers}

    def get_config(self) -> LlavaMiniConfig:
        return tiny_config(compressor_size=2, resolution_ratio=2, vision={"num_hidden_layers": 2})

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.randint(6, config.text_config.vocab_size, (self.batch_size, self.seq_length))
        ids[:, 2 : 2 + self.num_placeholders] = IMAGE_ID
        pixels = torch.randn(self.batch_size, config.num_crops, 3, IMAGE_SIZE, IMAGE_SIZE)
        return config, {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


class LlavaMiniModelTest(modeling_common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LlavaMiniModel, LlavaMiniForConditionalGeneration)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    # CLIP's norm of its pooled output, which nobody reads; test_everything_trainable_gets_a_gradient has the others.
    test_all_params_have_gradient = False
    # A video has a row of patch features a frame and crop, not one a video; test_outputs has the shapes.
    skip_test_video_features_output_shape = True

    def setUp(self):
        self.model_tester = LlavaMiniModelTester(self)
        self.config_tester = configuration_common.ConfigTester(
            self, config_class=LlavaMiniConfig, has_text_modality=False
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _image_features_prepare_config_and_inputs(self):
        # The mixin expects one row of patch features an image, so no sub-images.
        config = tiny_config(compressor_size=2, vision={"num_hidden_layers": 2})
        return config, {"pixel_values": torch.randn(self.model_tester.batch_size, 1, 3, IMAGE_SIZE, IMAGE_SIZE)}

    def _video_features_prepare_config_and_inputs(self):
        config = self.model_tester.get_config()
        shape = (self.model_tester.batch_size, 2, config.num_crops, 3, IMAGE_SIZE, IMAGE_SIZE)
        return config, {"pixel_values_videos": torch.randn(shape)}

    def test_can_init_all_missing_weights(self):
        # transformers lets the sub-models of third-party code keep torch's initialisation where weights are missing;
        # what the mixin asks is that ours would be right within transformers.
        with patch.object(LlavaMiniPreTrainedModel, "is_custom_code", lambda *_: False):
            super().test_can_init_all_missing_weights()

    @unittest.skip("The archive lacks GenerationTesterMixin; tests/test_generation_llava_mini.py checks generation.")
    def test_generation_tester_mixin_inheritance(self):
        pass


def ids_without_placeholders(shape, vocab_size, **kwargs):
    """What the mixin draws its prompts with, less the placeholders: it passes no pixels along."""
    ids = ids_tensor(shape, vocab_size, **kwargs)
    return ids.masked_fill((ids == IMAGE_ID) | (ids == VIDEO_ID), 10)


ids_tensor, modeling_common.ids_tensor = modeling_common.ids_tensor, ids_without_placeholders
