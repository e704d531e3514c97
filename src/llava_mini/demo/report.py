# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The figures under an answer."""

from dataclasses import dataclass

from llava_mini.demo.limits import MEBIBYTE


# As examples/benchmarks/flops.py counts them, for a picture and 43 tokens of text.
AT_FULL_SIZE = "at 7B it is 1.79 against 8.62 TFLOPs"
UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


@dataclass(frozen=True)
class Figures:
    """
    What an answer took. FLOPs are counted for the model's shape (see `llava_mini.flops`), not measured; LLaVA-1.5's for
    one made of the same vision tower and text model, which runs the whole prompt.

    Args:
        num_images (`int`): pictures, or frames of clips.
        vision_tokens, llava_tokens (`int`): of the whole prompt.
        prompt_tokens (`int`): of the whole prompt, vision tokens included.
        run_tokens (`int`): those of them that ran; the others were kept from the questions before.
        flops, fresh_flops, llava_flops (`int`): of this prefill, of one with nothing kept, and of LLaVA-1.5's.
        first_token (`float`): seconds from the question to the first token, reading and encoding pictures included.
        kept_bytes (`int`): what is kept for the next question.
        is_reused (`bool`): whether the pictures were not encoded, but taken from what was kept.
        is_new (`bool`): whether these are other pictures than were talked about before.
        times (`tuple[float, float]`, *optional*): tokens of the answer and the seconds they took, at its end.
    """

    num_images: int
    vision_tokens: int
    llava_tokens: int
    prompt_tokens: int
    run_tokens: int
    flops: int
    fresh_flops: int
    llava_flops: int
    first_token: float
    kept_bytes: int = 0
    is_reused: bool = False
    is_new: bool = False
    times: tuple[int, float] | None = None


def headline(figures: Figures) -> str:
    """One line."""
    parts = []
    if figures.num_images:
        tokens = f"{figures.vision_tokens} vision token{'s' if figures.vision_tokens != 1 else ''}"
        parts.append(f"{tokens} (LLaVA-1.5: {figures.llava_tokens})")
    parts.append(f"{show_flops(figures.flops)} (LLaVA-1.5: {show_flops(figures.llava_flops)})")
    parts.append(f"first token after {figures.first_token * 1000:.0f} ms")
    if figures.is_reused:
        parts.append("from what was kept")
    return " · ".join(parts)


def details(figures: Figures) -> str:
    """The same as a table and sentences, in markdown."""
    rows = ["| | LLaVA-Mini | LLaVA-1.5 |", "|---|---|---|"]
    if figures.num_images:
        what = "picture or frame" if figures.num_images == 1 else f"{figures.num_images} pictures or frames"
        rows.append(f"| vision tokens ({what}) | **{figures.vision_tokens}** | {figures.llava_tokens} |")
    rows.append(f"| prefill | **{show_flops(figures.flops)}** | {show_flops(figures.llava_flops)} |")
    if figures.is_reused:
        rows.append(f"| with nothing kept | {show_flops(figures.fresh_flops)} | {show_flops(figures.llava_flops)} |")
    sentences = []
    if figures.is_new:
        sentences.append("New pictures: asked without what was said before.")
    if figures.is_reused:
        sentences.append(
            f"From what was kept: the pictures were not encoded again, and of the prompt's {figures.prompt_tokens} "
            f"tokens {figures.run_tokens} ran."
        )
    elif figures.num_images:
        sentences.append(
            f"Encoded now and kept for your next question ({figures.kept_bytes / MEBIBYTE:.2f} MiB). The prompt has "
            f"{figures.prompt_tokens} tokens."
        )
    if figures.times is not None:
        tokens, seconds = figures.times
        sentences.append(f"{tokens} tokens of answer in {seconds:.2f} s.")
    sentences.append("FLOPs are counted for this model's shape; LLaVA-1.5 is one of the same tower and text model.")
    if figures.fresh_flops > figures.llava_flops:
        sentences.append(f"In a model this small pre-fusion costs more than it saves; {AT_FULL_SIZE}.")
    return "\n".join(rows) + "\n\n" + " ".join(sentences)


def show_flops(flops: int) -> str:
    """FLOPs in a unit that people read."""
    for size, unit in UNITS:
        if flops >= size:
            return f"{flops / size:.3g} {unit}" if flops / size < 100 else f"{flops / size:.0f} {unit}"
    return f"{flops} FLOPs"
