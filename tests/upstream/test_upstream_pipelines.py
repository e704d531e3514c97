"""transformers' PipelineTesterMixin on a converted checkpoint."""

import unittest

import pytest
import transformers
import upstream_archive
from tiny import tiny_config
from transformers import pipeline
from transformers.models.auto import processing_auto
from upstream_media import url_to_local_path

import llava_mini
from llava_mini import LlavaMiniForConditionalGeneration


pipeline_mixin = upstream_archive.load("test_pipeline_mixin")
NAME = LlavaMiniForConditionalGeneration.__name__
# Every task of the mixin, less ours: it skips these by itself, saying so.
TASKS = ("image-text-to-text", "any-to-any")


class PipelineStandIn:
    """In place of a task's own tests, which the archive lacks: makes what the mixin runs in batches, checks nothing."""

    task = TASKS[0]

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, feature_extractor=None, **kwargs):
        generate = pipeline(self.task, model=model, processor=kwargs["processor"], max_new_tokens=3)
        image = url_to_local_path("https://example.org/picture.png")
        examples = [{"images": image, "text": "<image>\nWhat is this?"}, {"images": image, "text": "Look: <image>"}]
        return generate, examples

    def run_pipeline_test(self, generate, examples):
        pass


class AnyToAnyStandIn(PipelineStandIn):
    task = TASKS[1]


class LlavaMiniPipelineTest(pipeline_mixin.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = dict.fromkeys(TASKS, LlavaMiniForConditionalGeneration)

    @pytest.fixture(autouse=True)
    def local_checkpoint(self, converted, tmp_path, monkeypatch):
        """The mixin loads from `<root>/<model type>/<class>`, by class names of transformers."""
        (tmp_path / tiny_config().model_type).mkdir()
        (tmp_path / tiny_config().model_type / NAME).symlink_to(converted("standard"))
        facts = {"tokenizer_classes": [], "processor_classes": ["LlavaMiniImageProcessor"]}
        monkeypatch.setattr(pipeline_mixin, "TRANSFORMERS_TINY_MODEL_PATH", str(tmp_path))
        monkeypatch.setattr(pipeline_mixin, "tiny_model_summary", {NAME: facts})
        monkeypatch.setitem(processing_auto.PROCESSOR_MAPPING_NAMES, "llava_mini", "LlavaMiniProcessor")
        for class_name in ("LlavaMiniProcessor", "LlavaMiniImageProcessor"):
            monkeypatch.setattr(transformers, class_name, getattr(llava_mini, class_name), raising=False)
        for task, stand_in in zip(TASKS, (PipelineStandIn, AnyToAnyStandIn)):
            test = stand_in
            if isinstance(pipeline_mixin.pipeline_test_mapping[task]["test"], str):  # newer mixins import by name
                test = f"{stand_in.__module__}.{stand_in.__name__}"
            monkeypatch.setitem(pipeline_mixin.pipeline_test_mapping[task], "test", test)
