"""A tiny LLaVA-Mini with uneven weights, and batches of rows with images and videos for it."""

from dataclasses import dataclass, field

import torch

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration


PAD_ID, IMAGE_ID, VIDEO_ID, VOCAB_SIZE = 1, 2, 3, 96
IMAGE_SIZE = 28


def tiny_config(text: dict | None = None, vision: dict | None = None, **kwargs) -> LlavaMiniConfig:
    text_config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD_ID,
        "bos_token_id": 4,
        "eos_token_id": 5,
    }
    vision_config = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 7,
        "projection_dim": 8,
    }
    values = {"num_prefusion_layers": 2, "prefusion_ignored_token_ids": [0], "compressor_num_attention_heads": 4}
    values |= {"image_token_id": IMAGE_ID, "video_token_id": VIDEO_ID} | kwargs
    return LlavaMiniConfig(
        text_config=text_config | (text or {}), vision_config=vision_config | (vision or {}), **values
    )


def make_uneven(model: torch.nn.Module, seed: int = 0):
    """Weights of very different sizes, norms and biases included: the usual initialisation hides swapped tensors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)


def tiny_model(seed: int = 0, attn_implementation: str = "sdpa", **kwargs) -> LlavaMiniForConditionalGeneration:
    config = tiny_config(**kwargs)
    config._attn_implementation = attn_implementation
    model = LlavaMiniForConditionalGeneration(config)
    make_uneven(model, seed)
    model.generation_config.eos_token_id = None  # so that every greedy run has the same length
    model.generation_config.pad_token_id = PAD_ID
    return model.eval()


@dataclass
class Row:
    """One row: ids with expanded placeholders and what belongs to them."""

    input_ids: torch.Tensor
    images: list[torch.Tensor] = field(default_factory=list)  # (K, 3, H, W) each
    videos: list[torch.Tensor] = field(default_factory=list)  # (frames, K, 3, H, W) each


def make_row(config: LlavaMiniConfig, parts: list, seed: int = 0) -> Row:
    """`parts`: an int is that many text tokens, "image" an image, ("video", n) a video of n frames."""
    generator = torch.Generator().manual_seed(seed)
    ids, images, videos = [], [], []
    crops = (config.num_crops, 3, IMAGE_SIZE, IMAGE_SIZE)
    for part in parts:
        if part == "image":
            images.append(torch.randn(crops, generator=generator))
            ids += [IMAGE_ID] * config.num_image_tokens
        elif isinstance(part, tuple):
            videos.append(torch.randn((part[1], *crops), generator=generator))
            ids += [VIDEO_ID] * (config.num_image_tokens * part[1])
        else:
            # Id 0 among them, which pre-fusion ignores.
            text = torch.randint(6, VOCAB_SIZE, (part,), generator=generator).tolist()
            ids += [0 if i % 5 == 3 else token for i, token in enumerate(text)]
    return Row(torch.tensor(ids), images, videos)


def collate(rows: list[Row], padding_side: str = "left") -> dict[str, torch.Tensor]:
    longest = max(len(row.input_ids) for row in rows)
    batch = {"input_ids": [], "attention_mask": []}
    for row in rows:
        padding = torch.zeros(longest - len(row.input_ids), dtype=torch.long)
        ids, mask = [padding + PAD_ID, row.input_ids], [padding, torch.ones_like(row.input_ids)]
        if padding_side == "right":
            ids, mask = ids[::-1], mask[::-1]
        batch["input_ids"].append(torch.cat(ids))
        batch["attention_mask"].append(torch.cat(mask))
    batch = {name: torch.stack(values) for name, values in batch.items()}
    images = [image for row in rows for image in row.images]
    videos = [video for row in rows for video in row.videos]
    if images:
        batch["pixel_values"] = torch.stack(images)
    if videos:
        batch["video_num_frames"] = torch.tensor([len(video) for video in videos])
        # Padding frames are filled with a number that would show.
        padded = torch.full((len(videos), int(batch["video_num_frames"].max()), *videos[0].shape[1:]), 7.0)
        for i, video in enumerate(videos):
            padded[i, : len(video)] = video
        batch["pixel_values_videos"] = padded
    return batch


ROWS = {
    "one image": [3, "image", 6],
    "text only": [7],
    "two images": [2, "image", 3, "image", 5],
    "one video": [1, ("video", 3), 8],
    "image and video": [2, "image", 4, ("video", 2), 3],
    "image last": [5, "image"],
    "adjacent images": ["image", "image", 9],
    "short video": [("video", 1), 4],
}


def make_rows(config: LlavaMiniConfig, names: list[str] | None = None) -> list[Row]:
    return [make_row(config, ROWS[name], seed) for seed, name in enumerate(names or ROWS)]
