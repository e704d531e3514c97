# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What the timing benchmarks share: options, models with random weights, interleaved measurements with peak memory."""

import argparse
import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel


TEXT_TOKENS = 43
NO_GPU = "GPUs: not measured, none was available for this run."


@dataclass
class Measurement:
    """Seconds of every run, and the largest memory (MiB) in use at a time beyond what was there before the call."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


def common_options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every timing benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--text-model", default="Vicuna-7B")
    parser.add_argument("--scale", type=float, default=0.25, help="multiplies widths, not depths")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--prefusion-patches",
        type=float,
        nargs="+",
        default=[],
        help="instead compare these shares of the patches in pre-fusion with all of them",
    )
    return parser


def facts(arguments: argparse.Namespace) -> dict:
    """The conditions of a run, for the table."""
    names = {"dtype": "dtype", "text_model": "text model", "scale": "scale", "runs": "n"}
    return {label: getattr(arguments, name) for name, label in names.items()}


def device_name(device: str) -> str:
    """The device in words."""
    return torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads"


def build(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, arguments: argparse.Namespace
) -> PreTrainedModel:
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


def make_prompt(placeholder_id: int, placeholders: int, batch: int, device: str) -> torch.Tensor:
    """`TEXT_TOKENS` random text tokens a row, with placeholders after the fifth."""
    text = torch.randint(10, 1000, (batch, TEXT_TOKENS), device=device)
    vision = torch.full((batch, placeholders), placeholder_id, device=device)
    return torch.cat([text[:, :5], vision, text[:, 5:]], dim=1)


def measure(functions: dict[str, Callable], runs: int, device: str) -> dict[str, Measurement]:
    """Calls one after the other in every round, so that all meet the same machine; the first round warms up."""
    results = {name: Measurement() for name in functions}
    for round_index in range(runs + 1):
        for name, function in functions.items():
            before = _start_peak(device)
            start = time.perf_counter()
            with torch.no_grad():
                function()
            if device != "cpu":
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            if round_index:
                results[name].seconds.append(taken)
                results[name].peak_mib = max(results[name].peak_mib, (_read_peak(device) - before) / 2**20)
    return results


def _start_peak(device: str) -> int:
    """Forgets the peak so far; returns the bytes in use. On CPUs Linux counts for us, elsewhere nobody does."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would hide what is used now
    Path("/proc/self/clear_refs").write_text("5")
    return _read_status("VmRSS")


def _read_peak(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return _read_status("VmHWM") if sys.platform == "linux" else float("nan")


def _read_status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
