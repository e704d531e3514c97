"""
Faults made on purpose. Each has to be caught by the checks named beside it, golden ones or our own; transformers'
mixins would pass most of them.
"""

import pytest
import test_generation_llava_mini as generation
import test_input_checks_llava_mini as input_checks
import test_modeling_llava_mini as modeling
import torch
from parity import test_parity as parity
from tiny import tiny_model

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniModel, front_llava_mini, visuals_llava_mini
from llava_mini.compressor_llava_mini import LlavaMiniCompressor
from llava_mini.prefusion_llava_mini import KeptText, LlavaMiniPreFusion


def text_never_fused(patch):
    patch.setattr(KeptText, "put_back", lambda text, num_units: text.inputs_embeds)


def text_reads_no_patches(patch):
    def forward(prefusion, hidden_states, key_values=(), num_outputs=None, position_ids=None):
        count = 1 if num_outputs is None else num_outputs
        only_compressed = tuple((keys[:, :, -count:], values[:, :, -count:]) for keys, values in key_values)
        return plain(prefusion, hidden_states, only_compressed, num_outputs, position_ids)

    plain = LlavaMiniPreFusion.forward
    patch.setattr(LlavaMiniPreFusion, "forward", forward)


def only_the_first_frame_used(patch):
    def select_first(frames, counts):
        return torch.cat([video[:1].expand(count, *video.shape[1:]) for video, count in zip(frames, counts)])

    patch.setattr(visuals_llava_mini, "select_frames", select_first)


def frames_summed_instead_of_averaged(patch):
    put_back = KeptText.put_back
    patch.setattr(KeptText, "put_back", lambda text, num_units: put_back(text, num_units.clamp(max=1)))


def average_in_the_compute_dtype(patch):
    def add(text, rows, fused):
        text.total = text.total.to(fused).index_add(0, rows, fused)

    patch.setattr(KeptText, "add", add)


def answers_fused(patch):
    def fuse_all(model, input_ids, inputs_embeds, attention_mask=None, text_fusion_mask=None):
        return get_mask(model, input_ids, inputs_embeds, attention_mask, torch.ones_like(input_ids))

    get_mask = LlavaMiniModel.get_text_fusion_mask
    patch.setattr(LlavaMiniModel, "get_text_fusion_mask", fuse_all)


def padding_fused(patch):
    def ignore_padding(model, input_ids, inputs_embeds, attention_mask=None, text_fusion_mask=None):
        return get_mask(model, input_ids, inputs_embeds, None, text_fusion_mask)

    get_mask = LlavaMiniModel.get_text_fusion_mask
    patch.setattr(LlavaMiniModel, "get_text_fusion_mask", ignore_padding)


def ignored_ids_fused(patch):
    def forget_ignored_ids(model, *args, **kwargs):
        patch.setattr(model.config, "prefusion_ignored_token_ids", [])
        return get_mask(model, *args, **kwargs)

    get_mask = LlavaMiniModel.get_text_fusion_mask
    patch.setattr(LlavaMiniModel, "get_text_fusion_mask", forget_ignored_ids)


def prompt_raw_when_generating(patch):
    patch.setattr(LlavaMiniForConditionalGeneration, "_fuse_prompt", lambda *_args, **_kwargs: None)


def images_of_another_row(patch):
    find = front_llava_mini.find_rows
    patch.setattr(front_llava_mini, "find_rows", lambda *args: find(*args).flip(0))


def mask_aligned_at_the_top(patch):
    """torch's own causal attention, which lets the first text token read the first patch only."""
    patch.setattr(LlavaMiniPreFusion, "create_mask", lambda *_: None)


def no_positions_in_the_compressor(patch):
    resize = LlavaMiniCompressor.resize_position_table
    patch.setattr(LlavaMiniCompressor, "resize_position_table", lambda *args: torch.zeros_like(resize(*args)))


def sub_images_one_after_the_other(patch):
    """Features in the order of the crops instead of the common raster."""

    def arrange(config, features):
        return features[:, :-1].flatten(1, 2), features[:, -1]

    patch.setattr(front_llava_mini, "arrange_crops", arrange)


def mask_ignored_when_generating(patch):
    fuse = LlavaMiniForConditionalGeneration._fuse_prompt
    patch.setattr(
        LlavaMiniForConditionalGeneration,
        "_fuse_prompt",
        lambda model, input_ids, given, _mask, model_kwargs: fuse(model, input_ids, given, None, model_kwargs),
    )


def position_table_in_the_compute_dtype(patch):
    def resize(compressor, num_keys):
        table = compressor.pos_embed.T.reshape(1, -1, compressor.size, compressor.size)
        grid = int(num_keys**0.5)
        return torch.nn.functional.interpolate(table, size=(grid, grid), mode="bicubic").flatten(2)[0].T

    patch.setattr(LlavaMiniCompressor, "resize_position_table", resize)


def check_positions_in_float32():
    """The keys' positions in bfloat16 are those of float32, rounded once."""
    compressor = tiny_model(compressor_size=3).model.compressor
    exact = compressor.resize_position_table(16)
    # What the weights hold is rounded already, so the reference starts from the same numbers.
    compressor.pos_embed.data = compressor.pos_embed.bfloat16().float()
    expected = compressor.resize_position_table(16).bfloat16()
    assert not torch.equal(expected.float(), exact)
    assert torch.equal(compressor.bfloat16().resize_position_table(16), expected)


def check_average_in_float32():
    """Many units in bfloat16: the mean is rounded once, at the end."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(200, 3, 8, generator=generator).bfloat16()
    text = KeptText(torch.zeros(1, 3, 8, dtype=torch.bfloat16), torch.ones(1, 3, dtype=torch.bool), 3)
    for chunk in fused.split(7):
        text.add(torch.zeros(len(chunk), dtype=torch.long), chunk)
    mean = text.put_back(torch.tensor([len(fused)]))
    assert torch.equal(mean[0], fused.float().mean(0).bfloat16())


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(compressor_size=2)


class Checks:
    """The named checks, on a golden case or the tiny model."""

    def __init__(self, converted, tiny):
        self.converted, self.tiny = converted, tiny

    def run(self, name: str):
        kind, _, rest = name.partition(" ")
        test, *arguments = rest.split()
        if kind == "unit":
            {"average_in_float32": check_average_in_float32, "positions_in_float32": check_positions_in_float32}[test]()
        elif kind == "inputs":
            getattr(input_checks, f"test_{test}")()
        elif kind in ("standard", "high_resolution"):
            case = parity.Case(kind, self.converted(kind))
            getattr(parity, f"test_{test}")(case, *(eval_argument(argument) for argument in arguments))
        else:
            module = {"model": modeling, "generate": generation}[kind]
            getattr(module, f"test_{test}")(self.tiny, *(argument.replace("_", " ") for argument in arguments))


def eval_argument(argument: str):
    return {"True": True, "False": False}.get(argument, argument)


FAULTS = {
    text_never_fused: [
        "standard fused_text_and_inputs_embeds",
        "standard logits",
        "standard greedy_ids image True",
        "model two_step_prefusion_equals_one_plain_sequence one_image",
    ],
    text_reads_no_patches: [
        "standard fused_text_and_inputs_embeds",
        "high_resolution logits",
        "model two_step_prefusion_equals_one_plain_sequence one_image",
    ],
    only_the_first_frame_used: [
        "standard video",
        "high_resolution video",
        "model two_step_prefusion_equals_one_plain_sequence one_video",
        "generate the_answer_depends_on_every_image_and_frame",
    ],
    frames_summed_instead_of_averaged: [
        "standard video",
        "model two_step_prefusion_equals_one_plain_sequence two_images",
    ],
    average_in_the_compute_dtype: ["unit average_in_float32"],
    position_table_in_the_compute_dtype: ["unit positions_in_float32"],
    mask_ignored_when_generating: ["inputs generate_reads_the_text_fusion_mask"],
    answers_fused: [
        "standard training_step",
        "model loss_ignores_answers_in_prefusion left",
        "generate greedy_equals_a_plain_loop one_image",
    ],
    padding_fused: ["model batch_equals_single_rows left"],
    ignored_ids_fused: ["standard fused_text_and_inputs_embeds", "standard logits"],
    prompt_raw_when_generating: [
        "standard greedy_ids image True",
        "standard greedy_ids video False",
        "generate greedy_equals_a_plain_loop one_image",
    ],
    images_of_another_row: ["standard batch", "model batch_equals_single_rows right"],
    mask_aligned_at_the_top: [
        "standard fused_text_and_inputs_embeds",
        "model two_step_prefusion_equals_one_plain_sequence one_image",
    ],
    no_positions_in_the_compressor: ["high_resolution compressor"],
    sub_images_one_after_the_other: ["high_resolution compressor", "high_resolution logits"],
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_caught(fault, converted, tiny, monkeypatch):
    checks = Checks(converted, tiny)
    with monkeypatch.context() as patch:
        fault(patch)
        for name in FAULTS[fault]:
            with pytest.raises(AssertionError):
                checks.run(name)


@pytest.mark.parametrize("name", sorted({name for names in FAULTS.values() for name in names}))
def test_checks_pass_without_a_fault(name, converted, tiny):
    """Otherwise they would catch anything."""
    Checks(converted, tiny).run(name)
