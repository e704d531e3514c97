# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Videos: frames a second and memory against a frame-by-frame loop that skips nothing, what keeping a video for the next
question costs and saves, and hours of video under a memory cap.

    python examples/benchmarks/video.py                         # CPU: a quarter of the widths, full depth, float32
    python examples/benchmarks/video.py --frames 16 --prefusion-patches .5 .25 .1       # against all patches
    python examples/benchmarks/video.py --device cuda --scale 1 --dtype bfloat16 --frames 16 128 1024 \\
        --hours 3 --memory-cap 24

Frames are random pixels that come as from a file, a few at a time. With `--hours`, so many frames at one a second are
answered while the allocator may hold `--memory-cap` GiB, weights included.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from shapes import mini_config, write_results
from timing import NO_GPU, TEXT_TOKENS, build, common_options, device_name, facts, make_prompt, measure
from transformers import AutoModel, PreTrainedModel

from llava_mini import LlavaMiniForConditionalGeneration


READ_AT_A_TIME = 8


@dataclass
class RandomFrames:
    """What `prepare_streamed_inputs` gives of a file, made up: frames `(n, K, 3, height, width)` when iterated."""

    num_frames: int
    crops: int
    image_size: int
    dtype: torch.dtype

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, self.num_frames, READ_AT_A_TIME):
            count = min(READ_AT_A_TIME, self.num_frames - start)
            yield torch.randn(count, self.crops, 3, self.image_size, self.image_size).to(self.dtype)


def make_video(model: PreTrainedModel, num_frames: int) -> RandomFrames:
    """A stream of the model's size."""
    config = model.config
    return RandomFrames(num_frames, config.num_crops, config.vision_config.image_size, model.dtype)


def frame_by_frame(
    model: PreTrainedModel, tower: PreTrainedModel, video: RandomFrames, text: torch.Tensor
) -> torch.Tensor:
    """The authors' loop: each frame alone, all tower layers, one sequence of patches, compressed tokens and text."""
    base = model.model
    total = torch.zeros_like(text, dtype=torch.float32)
    for frames in video:
        for frame in frames.to(text.device):
            features = tower(frame, output_hidden_states=True).hidden_states[model.config.vision_feature_layer][:, 1:]
            compressed, _ = base.compressor(features)
            vision = base.multi_modal_projector(torch.cat([features, compressed], dim=1))
            fused, _ = base.prefusion(torch.cat([vision, text], dim=1))
            total += fused[:, -text.shape[1] :].float()
    return total / video.num_frames


def compare_loops(model: PreTrainedModel, num_frames: int, arguments: argparse.Namespace) -> list[list]:
    """Frames a second through tower, compressor and pre-fusion with the text."""
    tower = build(AutoModel.from_config, model.config.vision_config, arguments)
    video = make_video(model, num_frames)
    ids = make_prompt(model.config.video_token_id, num_frames, 1, arguments.device)
    embeds = model.model.embed_prompt(ids)
    text = embeds[:, -TEXT_TOKENS:]

    def in_chunks():
        visuals = model.model.open_visuals(pixel_values_videos=[video], vision_memory_budget=arguments.budget)
        return model.model.fuse_modalities(ids, embeds, None, visuals)

    loop = "frame by frame, nothing skipped"
    functions = {loop: lambda: frame_by_frame(model, tower, video, text), "LLaVA-Mini, in chunks": in_chunks}
    results = measure(functions, arguments.runs, arguments.device)
    return [
        [
            f"{num_frames} frames",
            name,
            num_frames / own.median,
            "frames/s",
            results[loop].median / own.median,
            own.peak_mib,
            None,
        ]
        for name, own in results.items()
    ]


def compare_keeping(model: PreTrainedModel, num_frames: int, arguments: argparse.Namespace) -> list[list]:
    """A question about a video of which nothing, the patch features or keys and values were kept."""
    ids = make_prompt(model.config.video_token_id, num_frames, 1, arguments.device)
    options = {"logits_to_keep": 1, "vision_memory_budget": arguments.budget}
    contexts = {
        keep: model.encode_visuals(pixel_values_videos=[make_video(model, num_frames)], keep=keep)
        for keep in ("features", "key_values")
    }
    functions = {"nothing": lambda: model(ids, pixel_values_videos=[make_video(model, num_frames)], **options)}
    functions |= {
        keep: lambda context=context: model(ids, vision_context=context, **options)
        for keep, context in contexts.items()
    }
    results = measure(functions, arguments.runs, arguments.device)
    return [
        [
            f"question about {num_frames} frames",
            f"kept: {keep}",
            own.median,
            "s",
            results["nothing"].median / own.median,
            own.peak_mib,
            contexts[keep].nbytes / 2**20 if keep in contexts else 0.0,
        ]
        for keep, own in results.items()
    ]


def compare_budgets(model: PreTrainedModel, num_frames: int, arguments: argparse.Namespace) -> list[list]:
    """First token of a question about a video: all patches in pre-fusion, and shares of them."""
    ids = make_prompt(model.config.video_token_id, num_frames, 1, arguments.device)
    video = make_video(model, num_frames)
    shares = (1.0, *arguments.prefusion_patches)
    options = {"logits_to_keep": 1, "vision_memory_budget": arguments.budget}
    functions = {
        f"share {share:g}": partial(model, ids, pixel_values_videos=[video], prefusion_patches=share, **options)
        for share in shares
    }
    results = measure(functions, arguments.runs, arguments.device)
    first = next(iter(results.values())).median
    kept = [model.encode_visuals(pixel_values_videos=[video], prefusion_patches=share).nbytes for share in shares]
    return [
        [f"{num_frames} frames, first token", name, own.median, "s", first / own.median, own.peak_mib, nbytes / 2**20]
        for (name, own), nbytes in zip(results.items(), kept)
    ]


def answer_hours(model: PreTrainedModel, hours: int, arguments: argparse.Namespace) -> list[list]:
    """First token of a question about hours of video."""
    num_frames = hours * 3600
    ids = make_prompt(model.config.video_token_id, num_frames, 1, arguments.device)
    name = "LLaVA-Mini"

    def answer():
        model(
            ids,
            pixel_values_videos=[make_video(model, num_frames)],
            logits_to_keep=1,
            vision_memory_budget=arguments.budget,
        )

    own = measure({name: answer}, 1, arguments.device)[name]
    cap = f"at most {arguments.memory_cap} GiB in all" if arguments.memory_cap else "no cap"
    return [[f"{num_frames} frames, first token, {cap}", name, own.median, "s", None, own.peak_mib, None]]


def main():
    parser = common_options(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--kept-frames", type=int, default=8, help="length of the video that is asked about again")
    parser.add_argument("--hours", type=int, help="also answer about a video of this length")
    parser.add_argument("--memory-cap", type=float, help="GiB that the allocator may hold (accelerators)")
    parser.add_argument("--budget", type=int, help="bytes that the vision side may use at a time")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.memory_cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.memory_cap * 2**30 / total)
    model = build(
        LlavaMiniForConditionalGeneration, mini_config(arguments.text_model, scale=arguments.scale), arguments
    )
    rows = []
    with torch.no_grad():
        if arguments.prefusion_patches:
            for num_frames in arguments.frames:
                rows += compare_budgets(model, num_frames, arguments)
            header = ["case", "variant", "median", "unit", "times as fast as all patches", "peak MiB", "context MiB"]
            title = "Videos with fewer patches in pre-fusion"
            where = device_name(arguments.device)
            write_results(f"video_budget_{arguments.device}", title, header, rows, where, **facts(arguments))
            return
        for num_frames in arguments.frames:
            rows += compare_loops(model, num_frames, arguments)
        rows += compare_keeping(model, arguments.kept_frames, arguments)
        if arguments.hours:
            rows += answer_hours(model, arguments.hours, arguments)
    header = [
        "case",
        "variant",
        "median",
        "unit",
        "times as fast as the case's first row",
        "peak MiB beyond weights and inputs",
        "kept MiB",
    ]
    write_results(
        f"video_{arguments.device}",
        "Videos: time, memory, what keeping them costs",
        header,
        rows,
        device_name(arguments.device),
        notes=NO_GPU if arguments.device == "cpu" else "",
        **facts(arguments),
    )


if __name__ == "__main__":
    main()
