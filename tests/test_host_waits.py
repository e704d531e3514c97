"""Where the forward pass waits for the device: once in a prefill, to check the prompt, and never while decoding."""

import warnings

import pytest
import torch
from tiny import ROWS, collate, make_row, make_rows, tiny_model
from transformers import DynamicCache

from llava_mini import front_llava_mini


CASES = {
    "images": ["one image", "two images", "text only"],
    "a video": ["one video"],
    "both": ["image and video", "one image"],
}


def make_inputs(model, case: str) -> dict[str, torch.Tensor]:
    """A batch without a mask, whose values transformers looks at: padding then is text like any other."""
    if case == "a video":
        inputs = collate([make_row(model.config, ROWS["one video"])])
    else:
        inputs = collate(make_rows(model.config, CASES[case]), padding_side="right")
    inputs.pop("attention_mask")
    inputs.pop("video_num_frames", None)  # the frames of one video all count
    return inputs


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(("size", "ratio"), [(1, 1), (2, 2)])
def test_values_are_read_in_one_place(monkeypatch, case, size, ratio):
    """On the meta device nothing has a value, so reading one is an error."""
    model = tiny_model(compressor_size=size, resolution_ratio=ratio)
    inputs = make_inputs(model, case)
    counts = []
    read_counts = front_llava_mini.read_counts
    monkeypatch.setattr(front_llava_mini, "read_counts", lambda masks: counts.append(read_counts(masks)) or counts[-1])
    with torch.no_grad():
        shape = model(**inputs).logits.shape
    assert len(counts) == 1

    model, inputs = model.to("meta"), {name: tensor.to("meta") for name, tensor in inputs.items()}
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        model(**inputs)
    monkeypatch.setattr(front_llava_mini, "read_counts", lambda _: counts[0])
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        assert model(**inputs, cache=cache).logits.shape == shape
        # Decoding reads nothing at all.
        monkeypatch.setattr(front_llava_mini, "read_counts", None)
        assert model(input_ids=inputs["input_ids"][:, -1:], cache=cache).logits.shape[1] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CPUs have nothing to wait for")
@pytest.mark.parametrize("case", list(CASES))
def test_waits_on_a_gpu(case):
    """The same counted by CUDA itself."""
    model = tiny_model().to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in make_inputs(model, case).items()}
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**inputs)  # libraries set themselves up, which waits
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(**inputs, cache=cache)
            assert sum("synchroniz" in str(warning.message) for warning in caught) == 1
            torch.cuda.set_sync_debug_mode("error")
            model(input_ids=inputs["input_ids"][:, -1:], cache=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
