# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Time and memory against transformers' Llava with the same text model and random weights, in one process, interleaved.

    python examples/benchmarks/latency.py --compile             # CPU: a quarter of the widths, full depth, float32
    python examples/benchmarks/latency.py --prefusion-patches .5 .25 .1     # against all patches
    python examples/benchmarks/latency.py --device cuda --scale 1 --dtype bfloat16 --batch-sizes 1 16 --compile

Measured are the first token of a prompt with one image, a second question about the same image, and decoding, eager
and compiled (the first token on accelerators only). Every figure is the median of `--runs`; ratios are of medians from
the same run.
"""

import argparse
import copy
import statistics
import time
from functools import partial

import torch
from shapes import llava_config, mini_config, write_results
from timing import NO_GPU, build, common_options, device_name, facts, make_prompt, measure
from transformers import CompileConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from llava_mini import LlavaMiniForConditionalGeneration


NEW_TOKENS = 16
LLAVA, MINI = "LLaVA-v1.5", "LLaVA-Mini"


def make_inputs(model: PreTrainedModel, batch: int, arguments: argparse.Namespace) -> dict:
    """A prompt with one image a row."""
    config = model.config
    is_mini = isinstance(model, LlavaMiniForConditionalGeneration)
    ids = make_prompt(3, config.num_image_tokens if is_mini else config.image_seq_length, batch, arguments.device)
    crops = (config.num_crops,) if is_mini else ()
    size = config.vision_config.image_size
    pixels = torch.randn(batch, *crops, 3, size, size, device=arguments.device, dtype=model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def first_token(mini: PreTrainedModel, llava: PreTrainedModel, batch: int, arguments: argparse.Namespace) -> list[list]:
    """First token of both, and of a second question about the same image."""
    ours, theirs = make_inputs(mini, batch, arguments), make_inputs(llava, batch, arguments)
    context = mini.encode_visuals(ours["pixel_values"])
    text = {name: value for name, value in ours.items() if name != "pixel_values"}
    functions = {
        LLAVA: lambda: llava(**theirs, logits_to_keep=1),
        MINI: lambda: mini(**ours, logits_to_keep=1),
        f"{MINI}, second question": lambda: mini(**text, vision_context=context, logits_to_keep=1),
    }
    if arguments.compile and arguments.device != "cpu":  # there the time goes into products, not into calls
        compiled = {name: copy.copy(model) for name, model in ((LLAVA, llava), (MINI, mini))}
        for model in compiled.values():
            model.forward = torch.compile(model.forward)
        functions[f"{LLAVA}, compiled"] = lambda: compiled[LLAVA](**theirs, logits_to_keep=1)
        functions[f"{MINI}, compiled"] = lambda: compiled[MINI](**ours, logits_to_keep=1)
    results = measure(functions, arguments.runs, arguments.device)
    return [
        [f"first token, batch {batch}", name, 1000 * own.median, "ms", results[LLAVA].median / own.median, own.peak_mib]
        for name, own in results.items()
    ]


def fewer_patches(mini: PreTrainedModel, batch: int, arguments: argparse.Namespace) -> list[list]:
    """First token with all patches in pre-fusion and with shares of them, and what a context keeps."""
    inputs = make_inputs(mini, batch, arguments)
    shares = {f"{MINI}, share {share:g}": share for share in (1.0, *arguments.prefusion_patches)}
    functions = {
        name: partial(mini, **inputs, logits_to_keep=1, prefusion_patches=share) for name, share in shares.items()
    }
    results = measure(functions, arguments.runs, arguments.device)
    first = next(iter(results.values())).median
    kept = {name: mini.encode_visuals(inputs["pixel_values"], prefusion_patches=s).nbytes for name, s in shares.items()}
    return [
        [
            f"first token, batch {batch}",
            name,
            1000 * own.median,
            "ms",
            first / own.median,
            own.peak_mib,
            kept[name] / 2**20,
        ]
        for name, own in results.items()
    ]


class Clock(BaseStreamer):
    """When the prompt and every token came out of `generate`."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: torch.Tensor):
        """Called with the prompt, then with each token, on the host."""
        self.times.append(time.perf_counter())

    def end(self):
        """Nothing is left over."""

    @property
    def decoding_seconds(self) -> float:
        """From the first token to the last."""
        return self.times[-1] - self.times[1]


def decoding(mini: PreTrainedModel, llava: PreTrainedModel, arguments: argparse.Namespace) -> list[list]:
    """Tokens a second after the first one."""
    variants = {LLAVA: (llava, make_inputs(llava, 1, arguments), {}), MINI: (mini, make_inputs(mini, 1, arguments), {})}
    if arguments.compile:
        # `generate` compiles the decode step itself when the cache has a fixed size; on CPUs it has to be told.
        config = CompileConfig()
        config._compile_all_devices = True
        static = {"cache_implementation": "static", "compile_config": config}
        variants |= {f"{name}, compiled": (model, inputs, static) for name, (model, inputs, _) in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}

    def run(name: str):
        model, inputs, options = variants[name]
        clock = Clock()
        length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
        model.generate(**inputs, **options, **length, do_sample=False, streamer=clock)
        seconds[name].append(clock.decoding_seconds)

    results = measure({name: partial(run, name) for name in variants}, arguments.runs, arguments.device)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}  # without the round of warming up
    return [
        [
            "decoding, batch 1",
            name,
            (NEW_TOKENS - 1) / taken,
            "tokens/s",
            medians[LLAVA] / taken,
            results[name].peak_mib,
        ]
        for name, taken in medians.items()
    ]


def main():
    parser = common_options(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--compile", action="store_true", help="time compiled models too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = mini_config(arguments.text_model, scale=arguments.scale)
    mini = build(LlavaMiniForConditionalGeneration, config, arguments)
    if arguments.prefusion_patches:
        rows = [row for batch in arguments.batch_sizes for row in fewer_patches(mini, batch, arguments)]
        header = ["case", "model", "median", "unit", "times as fast as all patches", "peak MiB", "context MiB"]
        title = "First token with fewer patches in pre-fusion"
        where = device_name(arguments.device)
        write_results(f"latency_budget_{arguments.device}", title, header, rows, where, **facts(arguments))
        return
    llava = build(LlavaForConditionalGeneration, llava_config(arguments.text_model, arguments.scale), arguments)
    rows = []
    for batch in arguments.batch_sizes:
        rows += first_token(mini, llava, batch, arguments)
    rows += decoding(mini, llava, arguments)
    header = ["case", "model", "median", "unit", "times as fast as LLaVA-v1.5", "peak MiB beyond weights and inputs"]
    write_results(
        f"latency_{arguments.device}",
        "Time and memory against LLaVA-v1.5",
        header,
        rows,
        device_name(arguments.device),
        notes=NO_GPU if arguments.device == "cpu" else "",
        **facts(arguments),
    )


if __name__ == "__main__":
    main()
