"""LLaVA-format conversations to training batches."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from llava_mini import LlavaMiniProcessor


IGNORED = -100
# LLaVA's names of speakers.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = re.compile(r"\s*(<image>|<video>)\s*")
# Stage 1 shows a caption after its picture and nothing else (LLaVA's "plain" prompt).
CAPTION_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "assistant" %}
        {%- generation %}
        {{- message["content"] | trim + "\\n" }}
        {%- endgeneration %}
    {%- else %}
        {%- for part in message["content"] if part["type"] == "image" %}
            {{- "<image>" }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}"""


def _as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def to_messages(record: Mapping, media_folder: Path | None = None) -> list[dict]:
    """
    A record of LLaVA's JSON format as chat messages.

    Args:
        record: `conversations` (a list of `{"from": "human" | "gpt", "value": text}`) and, optionally, `image` or
            `video`: a path (or a Pillow image, as `datasets` gives it) or a list of them. `<image>` and `<video>` in
            the text say where they belong; LLaVA-Mini's own data writes `<image>` for videos too.
        media_folder (`Path`, *optional*): what the paths are relative to.

    Raises:
        ValueError: placeholders and media don't match, or a speaker is not known.
    """
    name = record.get("id", "without id")
    images, videos = _as_list(record.get("image")), _as_list(record.get("video"))
    media = {"image": iter(images), "video": iter(videos)}
    messages = []
    for turn in record["conversations"]:
        if turn["from"] not in ROLES:
            raise ValueError(f"Record {name}: speaker {turn['from']!r} is none of {', '.join(ROLES)}.")
        role, text = ROLES[turn["from"]], turn["value"]
        content = []
        for piece in PLACEHOLDER.split(text) if role == "user" else [text]:
            if piece in ("<image>", "<video>"):
                kind = "video" if piece == "<video>" or not images else "image"
                item = next(media[kind], None)
                if item is None:
                    raise ValueError(f"Record {name} has more {piece} placeholders than it has of {kind!r}.")
                if isinstance(item, str) and media_folder is not None:
                    item = str(media_folder / item)
                content.append({"type": kind, ("path" if isinstance(item, str) else kind): item})
            elif piece:
                content.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": content if role == "user" else text})
    left = {kind: len(list(items)) for kind, items in media.items()}
    if any(left.values()):
        raise ValueError(f"Record {name} has media without a placeholder in the text: {left}.")
    return messages


class ConversationDataset(Dataset):
    """
    Records in LLaVA's JSON format: a list of dictionaries or a `datasets.Dataset` with the columns `conversations` and,
    optionally, `image`, `video`, `id`.

    Args:
        records: the conversations.
        media_folder (`Path`, *optional*): what paths in them are relative to.
    """

    def __init__(self, records: Sequence[Mapping], media_folder: str | Path | None = None):
        if len(records) == 0:
            raise ValueError("There are no conversations to train on.")
        self.records = records
        self.media_folder = None if media_folder is None else Path(media_folder)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[str | Path],
        weights: Sequence[float] | None = None,
        media_folder: str | Path | None = None,
        seed: int = 0,
    ) -> "ConversationDataset":
        """
        One or several files. A weight is how often each of a file's records occurs in an epoch: 0.5 takes half of
        them, 2 all of them twice, 1.5 all of them and half of them again. Which half depends on `seed`.
        """
        weights = [1.0] * len(paths) if weights is None else weights
        if len(weights) != len(paths):
            raise ValueError(f"Got {len(weights)} weights for {len(paths)} files: give each file one.")
        rng = random.Random(seed)
        records = []
        for path, weight in zip(paths, weights):
            found = json.loads(Path(path).read_text())
            records += found * int(weight)
            records += rng.sample(found, round(len(found) * (weight % 1)))
        return cls(records, media_folder)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> list[dict]:
        return to_messages(self.records[index], self.media_folder)

    def lengths(self) -> list[int]:
        """
        Rough lengths for batches of similar samples: words, negative for text without pictures, so that it is kept
        apart as in LLaVA.
        """
        return [self._length(i) for i in range(len(self.records))]

    def _length(self, index: int) -> int:
        record = self.records[index]
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        return words if record.get("image") or record.get("video") else -words


class ConversationCollator:
    """
    Chats to right-padded batches with `labels` on what the assistant says and -100 elsewhere, and the
    `text_fusion_mask` that keeps it out of pre-fusion.

    Args:
        processor (`LlavaMiniProcessor`): its chat template marks the assistant's words (`{% generation %}`).
        max_length (`int`, *optional*): longer conversations are cut at their end.
        always_visual (`bool`, defaults to `True`):
            Add a row with an empty picture and no labels to batches without pictures and videos. It changes no loss and
            no gradient, but lets every process run the same modules, without which distributed training hangs.
    """

    def __init__(self, processor: LlavaMiniProcessor, max_length: int | None = None, always_visual: bool = True):
        self.processor = processor
        self.max_length = max_length
        self.always_visual = always_visual

    def __call__(self, conversations: list[list[dict]]) -> dict[str, torch.Tensor]:
        rows = list(conversations)
        is_textual = not any(kind in ("image", "video") for chat in rows for kind in part_types(chat))
        if self.always_visual and is_textual:
            rows.append(self._silent_row())
        inputs = self.processor.apply_chat_template(
            rows,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right"},
        )
        is_answer = inputs.pop("assistant_masks").bool()
        inputs["labels"] = inputs["input_ids"].masked_fill(~is_answer, IGNORED)
        # In the batch as well, since trainers with a loss of their own take the labels out before the model sees them.
        inputs["text_fusion_mask"] = ~is_answer
        if self.always_visual and is_textual:
            inputs["labels"][-1] = IGNORED
        return self._cut(dict(inputs))

    def _cut(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.max_length is None or inputs["input_ids"].shape[1] <= self.max_length:
            return inputs
        lost = inputs["input_ids"][:, self.max_length :]
        for token_id in (self.processor.image_token_id, self.processor.video_token_id):
            if (lost == token_id).any():
                raise ValueError(
                    f"A picture or video stands behind `max_length` ({self.max_length}) tokens, where the conversation "
                    "is cut: raise `max_length` or leave the record out."
                )
        by_token = ("input_ids", "attention_mask", "labels", "text_fusion_mask")
        return inputs | {name: inputs[name][:, : self.max_length] for name in by_token}

    def _silent_row(self) -> list[dict]:
        size = self.processor.image_processor.crop_size
        empty = torch.zeros(3, size["height"], size["width"], dtype=torch.uint8)
        return [
            {"role": "user", "content": [{"type": "image", "image": empty}]},
            {"role": "assistant", "content": "."},
        ]


class CaptionCollator:
    """
    Stage 1: batches for transformers' plain `LlavaForConditionalGeneration`, which sees all patches.

    Args:
        processor (`LlavaMiniProcessor`): of stage 2; a copy of its parts writes a placeholder a patch.
        num_patches (`int`): patches a picture.
        max_length (`int`, *optional*): longer captions are cut.
    """

    def __init__(self, processor: LlavaMiniProcessor, num_patches: int, max_length: int | None = None):
        image_processor, video_processor = (
            type(part).from_dict(part.to_dict() | {"resolution_ratio": 1})
            for part in (processor.image_processor, processor.video_processor)
        )
        patched = LlavaMiniProcessor(
            image_processor,
            processor.tokenizer,
            video_processor,
            chat_template=CAPTION_TEMPLATE,
            compressor_size=round(num_patches**0.5),
        )
        self.collator = ConversationCollator(patched, max_length, always_visual=False)

    def __call__(self, conversations: list[list[dict]]) -> dict[str, torch.Tensor]:
        batch = self.collator(conversations)
        del batch["text_fusion_mask"]  # plain LLaVA has no pre-fusion
        batch["pixel_values"] = batch["pixel_values"].flatten(0, 1)
        return batch


def part_types(chat: list[dict]) -> Iterator[str]:
    """What the content of a chat is made of."""
    for message in chat:
        if not isinstance(message["content"], str):
            yield from (part["type"] for part in message["content"])
