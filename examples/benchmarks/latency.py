# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Time and memory against transformers' Llava with the same text model and random weights, in one process, interleaved.

    python examples/benchmarks/latency.py                       # CPU: a quarter of the widths, full depth, float32
    python examples/benchmarks/latency.py --device cuda --scale 1 --dtype bfloat16 --batch-sizes 1 16

Every figure is the median of `--runs`; ratios are of medians from the same run. What is measured:
first token of a prompt with one image (eager, compiled on accelerators), a second question about the same image,
decoding (eager and compiled with a static cache), and video frames against a frame-by-frame loop that skips nothing.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from shapes import llava_config, mini_config, write_results
from transformers import AutoModel, LlavaForConditionalGeneration, PreTrainedModel

from llava_mini import LlavaMiniForConditionalGeneration


TEXT_TOKENS = 43
NEW_TOKENS = 16


def build(model_class: type[PreTrainedModel], config, arguments: argparse.Namespace) -> PreTrainedModel:
    """A model with random weights, made in place."""
    with torch.device(arguments.device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, arguments.dtype))
        model = model_class(config).eval()
        torch.set_default_dtype(default)
    if model.can_generate():  # always the same number of tokens
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def measure(functions: dict[str, Callable], runs: int, device: str) -> dict[str, tuple[float, float]]:
    """Median seconds and peak megabytes (accelerators only) of each, one after the other in every round."""
    seconds = {name: [] for name in functions}
    peaks = dict.fromkeys(functions, float("nan"))
    for round_index in range(runs + 1):
        for name, function in functions.items():
            if device != "cpu":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with torch.no_grad():
                function()
            if device != "cpu":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            if round_index:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(times), peaks[name]) for name, times in seconds.items()}


def make_inputs(model: PreTrainedModel, batch: int, placeholders: int, arguments: argparse.Namespace) -> dict:
    """A prompt of one image and `TEXT_TOKENS` text tokens a row."""
    text = torch.randint(10, 1000, (batch, TEXT_TOKENS), device=arguments.device)
    image = torch.full((batch, placeholders), 3, device=arguments.device)
    ids = torch.cat([text[:, :5], image, text[:, 5:]], dim=1)
    size = model.config.vision_config.image_size
    crops = (model.config.num_crops,) if hasattr(model.config, "num_crops") else ()
    pixels = torch.randn(batch, *crops, 3, size, size, device=arguments.device, dtype=model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def first_token(mini, llava, batch: int, arguments: argparse.Namespace) -> list[list]:
    """First token of both, and of a second question about the same image."""
    ours, theirs = make_inputs(mini, batch, 1, arguments), make_inputs(llava, batch, 576, arguments)
    context = mini.encode_visuals(ours["pixel_values"])
    text = {name: value for name, value in ours.items() if name != "pixel_values"}
    functions = {
        "LLaVA-v1.5": lambda: llava(**theirs, logits_to_keep=1),
        "LLaVA-Mini": lambda: mini(**ours, logits_to_keep=1),
        "LLaVA-Mini, second question": lambda: mini(**text, vision_context=context, logits_to_keep=1),
    }
    if arguments.device != "cpu":
        compiled = copy.copy(mini)
        compiled.forward = torch.compile(mini.forward)
        functions["LLaVA-Mini, compiled"] = lambda: compiled(**ours, logits_to_keep=1)
    results = measure(functions, arguments.runs, arguments.device)
    baseline = results["LLaVA-v1.5"][0]
    return [
        [f"first token, batch {batch}", name, f"{1000 * s:.1f} ms", f"{baseline / s:.2f}", _megabytes(peak)]
        for name, (s, peak) in results.items()
    ]


def decoding(mini, llava, arguments: argparse.Namespace) -> list[list]:
    """Tokens a second after the first one."""
    ours, theirs = make_inputs(mini, 1, 1, arguments), make_inputs(llava, 1, 576, arguments)
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    functions = {
        "LLaVA-v1.5": lambda: llava.generate(**theirs, **options),
        "LLaVA-v1.5, first": lambda: llava.generate(**theirs, max_new_tokens=1, do_sample=False),
        "LLaVA-Mini": lambda: mini.generate(**ours, **options),
        "LLaVA-Mini, first": lambda: mini.generate(**ours, max_new_tokens=1, do_sample=False),
    }
    if arguments.compile_decode:
        static = options | {"cache_implementation": "static"}
        functions["LLaVA-Mini, compiled"] = lambda: mini.generate(**ours, **static)
    results = measure(functions, arguments.runs, arguments.device)
    rows = []
    baseline = results["LLaVA-v1.5"][0] - results["LLaVA-v1.5, first"][0]
    for name in ("LLaVA-v1.5", "LLaVA-Mini", "LLaVA-Mini, compiled"):
        if name in results:
            first = results["LLaVA-v1.5, first" if "v1.5" in name else "LLaVA-Mini, first"][0]
            taken = results[name][0] - first
            rate = f"{(NEW_TOKENS - 1) / taken:.1f} tokens/s"
            rows.append(["decoding", name, rate, f"{baseline / taken:.2f}", _megabytes(results[name][1])])
    return rows


def frame_by_frame(mini, tower, frames: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The authors' loop: each frame alone, all tower layers, one sequence of patches, compressed tokens and text."""
    base = mini.model
    total = torch.zeros_like(text, dtype=torch.float32)
    for frame in frames:
        features = tower(frame, output_hidden_states=True).hidden_states[mini.config.vision_feature_layer][:, 1:]
        compressed, _ = base.compressor(features)
        vision = base.multi_modal_projector(torch.cat([features, compressed], dim=1))
        fused, _ = base.prefusion(torch.cat([vision, text], dim=1))
        total += fused[:, -text.shape[1] :].float()
    return total / len(frames)


def video(mini, arguments: argparse.Namespace) -> list[list]:
    """Frames a second through tower, compressor and pre-fusion with the text, by number of frames."""
    size = mini.config.vision_config.image_size
    tower = build(AutoModel.from_config, mini.config.vision_config, arguments)
    text = torch.randn(1, TEXT_TOKENS, mini.config.text_config.hidden_size, device=arguments.device, dtype=mini.dtype)
    rows = []
    for count in arguments.frames:
        frames = torch.randn(count, 1, 3, size, size, device=arguments.device, dtype=mini.dtype)

        def chunked(frames=frames):
            for chunk in mini.model.encode_chunks([frames], False, arguments.budget):
                mini.model.prefusion(text.expand(len(chunk.tokens), -1, -1), chunk.key_values)

        functions = {
            "frame by frame, nothing skipped": lambda frames=frames: frame_by_frame(mini, tower, frames, text),
            "LLaVA-Mini, in chunks": chunked,
        }
        results = measure(functions, arguments.runs, arguments.device)
        baseline = results["frame by frame, nothing skipped"][0]
        for name, (s, peak) in results.items():
            rows.append(
                [f"video, {count} frames", name, f"{count / s:.2f} frames/s", f"{baseline / s:.2f}", _megabytes(peak)]
            )
    return rows


def _megabytes(peak: float) -> str:
    return "not measured" if peak != peak else f"{peak:.0f} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--text-model", default="Vicuna-7B")
    parser.add_argument("--scale", type=float, default=0.25, help="multiplies widths, not depths")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--frames", type=int, nargs="+", default=[8])
    parser.add_argument("--budget", type=int, help="bytes that the vision side may use at a time")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile-decode", action="store_true", help="time compiled decoding too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = mini_config(arguments.text_model, scale=arguments.scale)
    mini = build(LlavaMiniForConditionalGeneration, config, arguments)
    llava = build(LlavaForConditionalGeneration, llava_config(arguments.text_model, arguments.scale), arguments)
    rows = []
    for batch in arguments.batch_sizes:
        rows += first_token(mini, llava, batch, arguments)
    rows += decoding(mini, llava, arguments)
    del llava
    rows += video(mini, arguments)
    device = torch.cuda.get_device_name() if arguments.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    header = ["case", "model", "median", "faster than the case's first row", "peak memory"]
    facts = {
        "dtype": arguments.dtype,
        "text model": arguments.text_model,
        "scale": arguments.scale,
        "n": arguments.runs,
    }
    name = f"latency_{arguments.device}"
    write_results(name, "Time and memory against LLaVA-v1.5", header, rows, device, **facts)


if __name__ == "__main__":
    main()
