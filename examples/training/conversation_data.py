"""LLaVA-format conversations to training batches."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

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


def _check_turns(record: Mapping, name: object) -> None:
    turns = record.get("conversations")
    if not isinstance(turns, (list, tuple)) or not turns:
        raise ValueError(f"Record {name} has no `conversations`, or something other than a list of turns there.")
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise ValueError(f"Record {name} has a turn without a text as its `value`: {str(turn)[:80]!r}.")
        if turn.get("from") not in list(ROLES):
            raise ValueError(f"Record {name}: speaker {turn.get('from')!r} is none of {', '.join(ROLES)}.")
        if ROLES[turn["from"]] != "user" and PLACEHOLDER.search(turn["value"]):
            raise ValueError(
                f"Record {name} has a placeholder where {turn['from']!r} speaks: only humans show pictures."
            )
    if not any(ROLES[turn["from"]] == "assistant" and turn["value"].strip() for turn in turns):
        raise ValueError(f"Record {name} has no answer to learn: none of its turns is from 'gpt', or all are empty.")


def check_media(messages: list[dict]) -> None:
    """
    Whether files in a chat are there and begin as pictures and videos do; they are not decoded.

    Raises:
        ValueError: one isn't; the message names it.
    """
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            item = part.get("path", part.get(part["type"]))
            if isinstance(item, (Image.Image, torch.Tensor, np.ndarray)) or part["type"] == "text":
                continue
            if not isinstance(item, str) or not Path(item).is_file():
                raise ValueError(f"its {part['type']} {item!r} is no file: is `--media` the folder that it is in?")
            try:
                if part["type"] == "image":
                    Image.open(item).close()
                else:
                    with av.open(item) as container:
                        container.streams.video[0]  # raises without one
            except (OSError, IndexError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"its {part['type']} {item} can't be opened ({error}).") from error


def _read_records(path: Path) -> list:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as JSON ({error}): give a file in LLaVA's format.") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} holds no list of records: give a file in LLaVA's format.")
    return found


def to_messages(record: Mapping, media_folder: Path | None = None) -> list[dict]:
    """
    A record of LLaVA's JSON format as chat messages.

    Args:
        record: `conversations` (a list of `{"from": "human" | "gpt", "value": text}`) and, optionally, `image` or
            `video`: a path (or a Pillow image, as `datasets` gives it) or a list of them. `<image>` and `<video>` in
            the text say where they belong; LLaVA-Mini's own data writes `<image>` for videos too.
        media_folder (`Path`, *optional*): what the paths are relative to.

    Raises:
        ValueError: placeholders and media don't match, a speaker is not known, there is no answer to learn, or
            something has another type than the format says.
    """
    name = record.get("id", "without id")
    _check_turns(record, name)
    images, videos = _as_list(record.get("image")), _as_list(record.get("video"))
    media = {"image": iter(images), "video": iter(videos)}
    messages = []
    for turn in record["conversations"]:
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
        origins (*optional*): file and place in it of each record, for errors.
    """

    def __init__(
        self,
        records: Sequence[Mapping],
        media_folder: str | Path | None = None,
        origins: Sequence[tuple[Path, int]] | None = None,
    ):
        if len(records) == 0:
            raise ValueError("There are no conversations to train on.")
        self.records = records
        self.origins = origins
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

        Raises:
            ValueError: a file can't be read, or a weight is no weight.
        """
        weights = [1.0] * len(paths) if weights is None else weights
        if len(weights) != len(paths):
            raise ValueError(f"Got {len(weights)} weights for {len(paths)} files: give each file one.")
        rng = random.Random(seed)
        records, origins = [], []
        for path, weight in zip(paths, weights):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"The weight of {path} is {weight}, but is how often its records occur in an epoch.")
            found = _read_records(Path(path))
            order = list(range(len(found))) * int(weight)
            order += rng.sample(range(len(found)), round(len(found) * (weight % 1)))
            records += [found[i] for i in order]
            origins += [(Path(path), i) for i in order]
        return cls(records, media_folder, origins)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> list[dict]:
        record = self.records[index]
        try:
            if not isinstance(record, Mapping):
                raise ValueError(f"it is no object with `conversations`, but {str(record)[:80]!r}.")
            return to_messages(record, self.media_folder)
        except ValueError as error:
            raise ValueError(f"{self._origin(index)}: {error}") from error

    def _origin(self, index: int) -> str:
        path, place = self.origins[index] if self.origins else ("The data", index)
        return f"{path}, record {place} (from 0)"

    def check(self, show_progress: bool = True) -> None:
        """
        Looks at every record once, so that a bad one is told now and not when its batch comes: structure, placeholders,
        whether there is an answer, whether its files are there and open.

        Raises:
            ValueError: something is wrong with a record; the message names file and record.
        """
        distinct = {self.origins[i] if self.origins else i: i for i in range(len(self))}
        for index in tqdm(distinct.values(), desc="Checking records", disable=not show_progress):
            messages = self[index]
            try:
                check_media(messages)
            except ValueError as error:
                name = self.records[index].get("id", "without id")
                raise ValueError(f"{self._origin(index)}: Record {name}: {error}") from error

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
