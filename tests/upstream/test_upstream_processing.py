"""transformers' mixins for image processors, video processors and processors on LLaVA-Mini's."""

import contextlib
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

import numpy as np
import upstream_archive
from tiny import IMAGE_SIZE
from transformers import PreTrainedTokenizerFast

from llava_mini import (
    LlavaMiniImageProcessor,
    LlavaMiniImageProcessorPil,
    LlavaMiniProcessor,
    LlavaMiniVideoProcessor,
)


image_common = upstream_archive.load("test_image_processing_common")
video_common = upstream_archive.load("test_video_processing_common")
processing_common = upstream_archive.load("test_processing_common")

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "golden" / "standard" / "original"
CHAT_TEMPLATE = ROOT / "conversion" / "chat_templates" / "llama3.jinja"
PIXELS = {
    "size": {"shortest_edge": IMAGE_SIZE},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "resolution_ratio": 2,
}
NUM_CROPS = 5
# Errors that the mixins expect in upstream's words, in ours.
MESSAGES = {" tokens in the prompts should be the same as the number of ": "placeholders in the text"}
WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None  # importing it fails
import numpy, transformers, llava_mini
processor = transformers.AutoImageProcessor.from_pretrained(sys.argv[1])
assert type(processor) is llava_mini.LlavaMiniImageProcessorPil
pixels = processor(numpy.load(sys.argv[1] + "/image.npy"), return_tensors="np").pixel_values
numpy.save(sys.argv[1] + "/pixels.npy", pixels)
"""


class LlavaMiniImageProcessingTester(image_common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, **(PIXELS | kwargs))

    def _get_image_processing_classes(self):
        return {"torchvision": LlavaMiniImageProcessor, "pil": LlavaMiniImageProcessorPil}

    def expected_output_image_shape(self, images):
        return NUM_CROPS, *super().expected_output_image_shape(images)


class LlavaMiniImageProcessingTest(image_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = LlavaMiniImageProcessingTester
    test_cast_dtype = True

    @unittest.skip("The tower reads three channels; four without do_convert_rgb are refused, as the next test checks.")
    def test_call_numpy_4_channels(self):
        pass

    def test_pil_can_load_without_torchvision(self):
        # Old mixins reload a module of transformers.models and new ones call the same slow; here a process of its own.
        processor = LlavaMiniImageProcessorPil(**self.image_processor_dict)
        image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as directory:
            processor.save_pretrained(directory)
            np.save(f"{directory}/image.npy", image)
            subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, directory], check=True)
            pixels = np.load(f"{directory}/pixels.npy")
        np.testing.assert_array_equal(pixels, processor(image, return_tensors="np").pixel_values)

    def test_four_channels_are_refused_unless_converted(self):
        image = np.random.randint(255, size=(30, 40, 4), dtype=np.uint8)
        for image_processing_class in self.image_processing_classes.values():
            processor = image_processing_class(**self.image_processor_dict)
            with self.assertRaisesRegex(ValueError, "4 channels"):
                processor(image, do_convert_rgb=False)
            pixels = processor(image, return_tensors="pt").pixel_values
            assert pixels.equal(processor(image[..., :3], return_tensors="pt").pixel_values)


class LlavaMiniVideoProcessingTester:
    """What the mixin asks a video processor's own test for: its settings and random videos."""

    batch_size, num_frames, num_channels = 5, 4, 3

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return video_common.prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=80,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )

    def expected_output_video_shape(self, videos):
        return self.num_frames, NUM_CROPS, 3, 18, 18


class LlavaMiniVideoProcessingTest(video_common.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = LlavaMiniVideoProcessor
    test_cast_dtype = True
    # Sizes that the mixin expects by number.
    video_processor_dict = PIXELS | {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}

    def setUp(self):
        super().setUp()
        self.video_processor_tester = LlavaMiniVideoProcessingTester()

    def test_call_sample_frames(self):
        # The mixin wants an error for more frames than there are; here it is all of them, as the next test checks.
        def sample_frames(processor, metadata, num_frames=None, **kwargs):
            if num_frames is not None and num_frames > metadata.total_num_frames:
                raise ValueError
            return sample(processor, metadata, num_frames=num_frames, **kwargs)

        sample = LlavaMiniVideoProcessor.sample_frames
        with patch.object(LlavaMiniVideoProcessor, "sample_frames", sample_frames):
            super().test_call_sample_frames()

    def test_more_frames_than_there_are(self):
        video = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")[0]
        inputs = LlavaMiniVideoProcessor(**self.video_processor_dict)(video, num_frames=10, return_tensors="pt")
        assert inputs["video_num_frames"].tolist() == [len(video)] and inputs["pixel_values_videos"].shape[1] == 4

    @unittest.skip("The mixin looks for the channels on axis 1, where the crops are; the next test checks the same.")
    def test_call_numpy_4_channels(self):
        pass

    def test_four_channels_become_three(self):
        self.video_processor_tester.num_channels = 4
        video = self.video_processor_tester.prepare_video_inputs()[0]
        processor = LlavaMiniVideoProcessor(**self.video_processor_dict)
        pixels = processor(video, return_tensors="pt")["pixel_values_videos"]
        assert pixels.shape == (1, *self.video_processor_tester.expected_output_video_shape([video]))
        without_alpha = processor([frame.convert("RGB") for frame in video], return_tensors="pt")
        assert pixels.equal(without_alpha["pixel_values_videos"])


class LlavaMiniProcessorTest(processing_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = LlavaMiniProcessor

    @classmethod
    def _setup_image_processor(cls):
        return LlavaMiniImageProcessor(**PIXELS)

    @classmethod
    def _setup_video_processor(cls):
        return LlavaMiniVideoProcessor(**PIXELS)

    @classmethod
    def _setup_tokenizer(cls):
        placeholders = {"image_token": "<image>", "video_token": "<video>"}
        return PreTrainedTokenizerFast.from_pretrained(
            TOKENIZER, extra_special_tokens=placeholders, padding_side="left"
        )

    @staticmethod
    def prepare_processor_dict():
        return {"chat_template": CHAT_TEMPLATE.read_text(), "compressor_size": 2}

    def prepare_audio_inputs(self, batch_size=None):
        # Every processor's signature has `audio`, so the mixin passes it; this one refuses instead of ignoring it.
        return None

    @property
    def video_sampling_expectations(self):
        expectations = super().video_sampling_expectations
        # The mixin's processors take all frames unless told otherwise, this one takes one a second.
        assert expectations[-1] == {"expected_dim": 1, "output_length": 11}
        expectations[-1]["output_length"] = 1
        return expectations

    def assertRaisesRegex(self, error, pattern, *args, **kwargs):
        if pattern.startswith("Sampling frames from a list of images is not supported"):
            return contextlib.nullcontext()  # it is supported here, so the call has to go through
        return super().assertRaisesRegex(error, MESSAGES.get(pattern, pattern), *args, **kwargs)
