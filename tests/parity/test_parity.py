"""
The authors' numbers: every tensor of tests/golden/{standard,high_resolution}, made with the authors' code from the
checkpoints beside them (`case.json` explains each), against the converted checkpoints. Stage by stage, so that a
failure names the step.
"""

import json
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_mini.compressor_llava_mini import sine_cosine_table
from llava_mini.original_names_llava_mini import rename_key
from llava_mini.visuals_llava_mini import arrange_crops


GOLDEN = Path(__file__).parents[1] / "golden"
# The project's bar in float32 (PARITY.md); what is left is the order of summation.
TOLERANCE = {"atol": 1e-5, "rtol": 0}


class Case:
    """One golden case and the model converted from its checkpoint."""

    def __init__(self, name: str, checkpoint: Path):
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
        self.config = self.model.config
        self.tensors = load_file(GOLDEN / name / "tensors.safetensors")
        self.facts = json.loads((GOLDEN / name / "case.json").read_text())

    def expand(self, ids: torch.Tensor, units: int, token_id: int, fill: torch.Tensor | None = None) -> torch.Tensor:
        """The authors' one -200 as `units * C*C` placeholders (or, for labels beside their ids, as `fill`)."""
        count = units * self.config.num_image_tokens
        rows = []
        for row, values in zip(ids, ids if fill is None else fill):
            place = (row == -200).nonzero()[0, 0]
            middle = torch.full((count,), token_id if fill is None else -100)
            rows.append(torch.cat([values[:place], middle, values[place + 1 :]]))
        return torch.stack(rows)

    @cached_property
    def image(self) -> dict[str, torch.Tensor]:
        ids = self.expand(self.tensors["image.input_ids"], 1, self.config.image_token_id)
        return {"input_ids": ids, "pixel_values": self.tensors["image.images"]}

    @cached_property
    def video(self) -> dict[str, torch.Tensor]:
        frames = self.tensors["video.images"]
        ids = self.expand(self.tensors["video.input_ids"], frames.shape[1], self.config.video_token_id)
        return {"input_ids": ids, "pixel_values_videos": frames}

    @cached_property
    def features(self):
        with torch.no_grad():
            return self.model.get_image_features(self.image["pixel_values"], output_compressor_attentions=True)

    def inputs_embeds(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the language model is given."""
        with torch.no_grad():
            return self.model(**inputs, output_hidden_states=True).hidden_states[0]

    def close(self, actual: torch.Tensor, name: str):
        torch.testing.assert_close(actual, self.tensors[name], **TOLERANCE)


@pytest.fixture(scope="module", params=["standard", "high_resolution"])
def case(request, converted):
    return Case(request.param, converted(request.param))


def test_vision_features(case):
    case.close(case.features.last_hidden_state, "image.vision_features")


def test_compressor(case):
    whole = case.features.last_hidden_state.unflatten(0, (1, -1))
    raster, _ = arrange_crops(case.config, whole)
    with torch.no_grad():
        compressed, attention = case.model.model.compressor(raster, output_attentions=True)
        other, nothing = case.model.model.compressor(raster)
    case.close(compressed, "image.compressed_before_projection")
    case.close(attention, "image.compressor_attention")
    case.close(other, "image.compressed_before_projection")
    assert nothing is None
    case.close(case.features.compressor_attentions, "image.compressor_attention")


def test_position_table_is_the_loaded_one(case):
    """The checkpoints' tables are the authors' sine-cosine ones, which a new model starts from as well."""
    table = case.model.model.compressor.pos_embed
    torch.testing.assert_close(table, sine_cosine_table(case.config.compressor_size, table.shape[-1]), **TOLERANCE)


def test_compressed_tokens(case):
    case.close(torch.stack(case.features.pooler_output), "image.compressed_tokens")


def test_fused_text_and_inputs_embeds(case):
    embeds = case.inputs_embeds(case.image)
    case.close(embeds, "image.inputs_embeds")
    is_text = case.tensors["image.input_ids"][0] != -200
    fused = case.tensors["image.fused_text"][0][is_text]
    mine = embeds[0][case.image["input_ids"][0] != case.config.image_token_id]
    torch.testing.assert_close(mine, fused, **TOLERANCE)
    # The prompt has a "!", id 0, which takes no part: the test would be weaker without it.
    raw = case.model.get_input_embeddings().weight[0]
    assert (case.image["input_ids"] == 0).any()
    assert torch.equal(embeds[0][case.image["input_ids"][0] == 0], raw[None])


def test_logits(case):
    with torch.no_grad():
        case.close(case.model(**case.image).logits, "image.logits")


def test_video(case):
    case.close(case.inputs_embeds(case.video), "video.inputs_embeds")
    with torch.no_grad():
        case.close(case.model(**case.video).logits, "video.logits")


def test_video_as_padded_and_with_another(case):
    """The same video beside a longer one, padded and cut by `video_num_frames`."""
    frames = case.video["pixel_values_videos"]
    longer = torch.cat([frames, frames[:, :2] + 1], dim=1)
    padded = torch.cat([frames, torch.full_like(frames[:, :2], 9.0)], dim=1)
    count = longer.shape[1]
    longer_ids = case.expand(case.tensors["video.input_ids"], count, case.config.video_token_id)
    ids = case.video["input_ids"]
    pad = torch.full((1, longer_ids.shape[1] - ids.shape[1]), 1)
    with torch.no_grad():
        logits = case.model(
            input_ids=torch.cat([longer_ids, torch.cat([pad, ids], dim=1)]),
            attention_mask=torch.cat(
                [torch.ones_like(longer_ids), torch.cat([torch.zeros_like(pad), torch.ones_like(ids)], dim=1)]
            ),
            pixel_values_videos=torch.cat([longer, padded]),
            video_num_frames=torch.tensor([count, frames.shape[1]]),
        ).logits
    case.close(logits[1:, pad.shape[1] :], "video.logits")


def test_text_alone(case):
    with torch.no_grad():
        case.close(case.model(input_ids=case.tensors["text.input_ids"]).logits, "text.logits")


def test_batch(case):
    ids = case.expand(case.tensors["batch.input_ids"], 1, case.config.image_token_id)
    with torch.no_grad():
        logits = case.model(input_ids=ids, pixel_values=case.tensors["batch.images"]).logits
    case.close(logits, "batch.logits")


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids(case, kind, use_cache):
    inputs = getattr(case, kind)
    made = case.model.generate(**inputs, do_sample=False, max_new_tokens=16, use_cache=use_cache)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], case.tensors[f"{kind}.generated"])


def test_training_step(case):
    ids = case.expand(case.tensors["train.input_ids"], 1, case.config.image_token_id)
    labels = case.expand(case.tensors["train.input_ids"], 1, -100, fill=case.tensors["train.labels"])
    model = case.model
    model.zero_grad()
    model.get_input_embeddings().requires_grad_(False)  # the authors' recipe: the table gets no gradient
    model.model.vision_tower.requires_grad_(False)
    loss = model(input_ids=ids, pixel_values=case.image["pixel_values"], labels=labels).loss
    torch.testing.assert_close(loss, case.tensors["train.loss"], rtol=1e-4, atol=0)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.get_input_embeddings().requires_grad_(True)
    for name, norm in case.facts["train_gradient_norms"].items():
        ours = [gradients.pop(key, None) for key in rename_key(name)]  # packed q, k, v share one norm
        if norm is None:
            assert ours == [None], name
        else:
            actual = torch.cat([gradient.flatten() for gradient in ours]).norm().item()
            assert actual == pytest.approx(norm, rel=1e-4), name
    assert not gradients
