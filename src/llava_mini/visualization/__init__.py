# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What a model looked at, as pictures: `pip install llava-mini-hf[visualization]`.

    from llava_mini.visualization import picture_attention

    look = picture_attention(model, processor, "cat.jpg", "What is the cat doing?")
    look                      # in a notebook: the picture, what the vision tokens looked at, what each word read
    look.save("look.png")     # without one

Overlays and maps as images and arrays (`look.word_overlay("cat")`, `look.word_map("cat")`) do without matplotlib.
"""

import os

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.video_utils import VideoInput, VideoMetadata

from ..image_processing_pil_llava_mini import check_same_size
from ..image_reading_llava_mini import as_array
from .geometry import PatchLayout
from .pictures import PictureAttention
from .reading import UnitAttention, find_front, prefusion_attentions, read_units, write_prompt
from .sheets import PatchBudgetComparison, VideoAttention


# Frames of a video to look at: they are held in full size, and no sheet shows more legibly.
MAX_FRAMES = 64
# Tokens of an answer that has a figure's title to stand in.
MAX_NEW_TOKENS = 32


def picture_attention(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    picture: ImageInput | str | bytes | os.PathLike,
    question: str | None = None,
    *,
    prefusion_patches: float | None = None,
    prefusion_mass: float | None = None,
    max_new_tokens: int | None = None,
) -> PictureAttention:
    """
    What the vision tokens looked at in the compressor and, with a question, what its words read of the patches in
    pre-fusion; on the picture as it was passed, upright. It takes a pass of its own.

    Args:
        model (`LlavaMiniForConditionalGeneration`), processor (`LlavaMiniProcessor`).
        picture: a Pillow image, an array, a path, a URL, base64 or bytes.
        question (`str`, *optional*): one user message's text.
        prefusion_patches, prefusion_mass (`float`, *optional*): which patches pre-fusion reads, see
            `LlavaMiniConfig`.
        max_new_tokens (`int`, *optional*): also answer the question, greedily, in at most so many tokens.

    Raises:
        ValueError: a picture that can't be read, a budget that is none, a processor that is not the model's, or an
            answer without a question.

    Example:

    ```python
    >>> look = picture_attention(model, processor, "cat.jpg", "What is the cat doing?", max_new_tokens=32)
    >>> look.save("look.png")
    >>> look.word_map("cat").shape  # the picture's own (height, width)
    ```
    """
    if isinstance(picture, (list, tuple)):
        raise ValueError(f"`picture` is a list of {len(picture)}: pass one picture, or a video to `video_attention`.")
    part = processor.image_processor
    opened = part.fetch_images(picture, max_pixels=part.max_pixels)
    pixels = as_array(part.process_image(opened, do_convert_rgb=True, max_pixels=part.max_pixels))
    inputs = part(pixels, input_data_format="channels_first", return_tensors="pt")
    budget = {"prefusion_patches": prefusion_patches, "prefusion_mass": prefusion_mass}
    looks, _ = _look(model, processor, "image", pixels[None], dict(inputs), question, budget, max_new_tokens)
    return looks[0]


def video_attention(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    video: VideoInput | str | bytes | os.PathLike,
    question: str | None = None,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    prefusion_patches: float | None = None,
    prefusion_mass: float | None = None,
    max_new_tokens: int | None = None,
) -> VideoAttention:
    """
    `picture_attention` of the frames that the model sees of a video, as a contact sheet with times.

    Args:
        video: a path, a URL, base64 or bytes of a video, or its frames.
        fps (`float`, *optional*), num_frames (`int`, *optional*): which frames, as of the video processor, whose own
            rule is the default.
        model, processor, question, prefusion_patches, prefusion_mass, max_new_tokens: see `picture_attention`.

    Raises:
        ValueError: as `picture_attention`; or there are more than 64 frames.
    """
    frames, times = _read_frames(processor.video_processor, video, fps, num_frames)
    inputs = processor.video_processor(
        [torch.from_numpy(frames)], do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
    )
    budget = {"prefusion_patches": prefusion_patches, "prefusion_mass": prefusion_mass}
    looks, answer = _look(model, processor, "video", frames, dict(inputs), question, budget, max_new_tokens)
    return VideoAttention(looks, times, question, answer)


def compare_patch_budget(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    picture: ImageInput | str | bytes | os.PathLike,
    question: str,
    *,
    prefusion_patches: float | None = None,
    prefusion_mass: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> PatchBudgetComparison:
    """
    Which patches a budget keeps on the picture, what the question's words read with and without it, and both answers.
    Arguments: see `picture_attention`; the budget is the configuration's by default.

    Raises:
        ValueError: as `picture_attention`; or neither call nor configuration has a budget.
    """
    budget = {"prefusion_patches": prefusion_patches, "prefusion_mass": prefusion_mass}
    config = find_front(model).config
    if {prefusion_patches, prefusion_mass, config.prefusion_patches, config.prefusion_mass} <= {None, 1}:
        raise ValueError(
            "There is no patch budget to compare all patches with: pass `prefusion_patches` or `prefusion_mass`."
        )
    before = picture_attention(
        model, processor, picture, question, prefusion_patches=1.0, max_new_tokens=max_new_tokens
    )
    after = picture_attention(model, processor, picture, question, **budget, max_new_tokens=max_new_tokens)
    return PatchBudgetComparison(before, after)


def _look(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    modality: str,
    pictures: np.ndarray,
    inputs: dict[str, torch.Tensor],
    question: str | None,
    budget: dict[str, float | None],
    max_new_tokens: int | None,
) -> tuple[list[PictureAttention], str | None]:
    """`pictures` `(U, 3, height, width)` in 8-bit, and what was read of each; and the answer."""
    front = find_front(model)
    prompt = answer = None
    if question is not None:
        prompt = write_prompt(model, processor, modality, len(pictures), question)
        inputs = inputs | prompt.inputs
    if max_new_tokens is not None:
        answer = _answer(model, processor, inputs, budget, max_new_tokens)
    part = processor.image_processor if modality == "image" else processor.video_processor
    layout = PatchLayout.of(front.config, part, pictures.shape[-1], pictures.shape[-2])
    looks = []
    for pixels, unit in zip(pictures, read_units(model, inputs, **budget)):
        look = PictureAttention(
            PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))),
            layout,
            unit.tokens.numpy(),
            unit.is_read.numpy(),
            question=None if question is None else question.strip(),
            answer=answer,
        )
        if unit.text is not None and prompt.places:
            look.words, look.text, look.spans = prompt.words, prompt.text, prompt.spans
            look.word_weights = unit.text[:, prompt.places, : len(unit.is_read)].numpy()
        looks.append(look)
    return looks, answer


def _answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: dict[str, torch.Tensor],
    budget: dict[str, float | None],
    max_new_tokens: int,
) -> str:
    """The greedy answer."""
    if "input_ids" not in inputs or not hasattr(model, "generate"):
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}, so an answer is asked for: it needs a `question`, and a model with "
            f"a language modeling head, where this is {type(model).__name__}."
        )
    ids = model.generate(**inputs, **budget, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def _read_frames(
    part, video: VideoInput | str | bytes | os.PathLike, fps: float | None, num_frames: int | None
) -> tuple[np.ndarray, list[float] | None]:
    """The sampled frames `(frames, 3, height, width)` in their own size, and their times in seconds, if any."""

    def sample(metadata: VideoMetadata, **kwargs) -> np.ndarray:
        indices = part.sample_frames(metadata, fps=fps, num_frames=num_frames)
        if len(indices) > MAX_FRAMES:
            raise ValueError(
                f"These are {len(indices)} frames, but at most {MAX_FRAMES} can be looked at: pass "
                f"`num_frames={MAX_FRAMES}`, or fewer frames a second (`fps`)."
            )
        return indices

    videos = part.flatten_videos([[video]])  # nested as in a batch of chats: there a list of paths is frames
    if len(videos) != 1:
        raise ValueError(f"`video` is {len(videos)} videos: pass one.")
    if isinstance(videos[0], (str, bytes, os.PathLike)):
        frames, metadata = part.fetch_videos(videos[0], sample)
        has_times = metadata.fps is not None or metadata.frame_times is not None
        return frames.numpy(), [float(time) for time in metadata.timestamps] if has_times else None
    if len(videos[0]) == 0:
        raise ValueError("`video` has no frames: pass one that has.")
    indices = sample(VideoMetadata(total_num_frames=len(videos[0])))
    frames = list(part.pick_frames(videos[0], indices, part.do_rescale, part.max_pixels))
    return torch.stack(check_same_size(frames)).numpy(), None


__all__ = [
    "PatchBudgetComparison",
    "PatchLayout",
    "PictureAttention",
    "UnitAttention",
    "VideoAttention",
    "compare_patch_budget",
    "picture_attention",
    "prefusion_attentions",
    "read_units",
    "video_attention",
]
