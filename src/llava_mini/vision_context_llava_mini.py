# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model keeps of images and videos between questions. Shapes: see `modeling_llava_mini.py`."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import DynamicCache

from .patch_budget_llava_mini import PatchBudget
from .visuals_llava_mini import Encode, LlavaMiniVisualChunk, LlavaMiniVisuals


# What a saved context is marked with.
METADATA, CHECKSUM = "llava_mini_vision_context", "checksum"
# Numbers of each tensor that tell models apart: further training changes nearly all, and few are quick to read.
FINGERPRINT_SAMPLES = 16


@dataclass(repr=False)
class LlavaMiniTurn:
    r"""
    The text part of a context: the prompt that has been run.

    Args:
        input_ids (`torch.Tensor` of shape `(1, S)`): the prompt.
        is_fused (`torch.Tensor` of shape `(S,)`): which of its tokens took part in pre-fusion.
        visuals (`dict[str, LlavaMiniVisualChunk]`): units with pre-fusion keys and values of vision and the kept text.
        cache (`DynamicCache`): the language model's keys and values of the prompt.
    """

    input_ids: torch.Tensor
    is_fused: torch.Tensor
    visuals: dict[str, LlavaMiniVisualChunk]
    cache: DynamicCache | None = None

    def __repr__(self) -> str:
        """In one line, without the numbers in it."""
        return f"{type(self).__name__}({self.input_ids.shape[-1]} tokens, {_show_bytes(self.nbytes)})"

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, the language model's cache included."""
        kept = [t for chunk in self.visuals.values() for t in chunk.tensors().values()]
        layers = () if self.cache is None else self.cache.layers
        kept += [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.nbytes for t in kept)

    def count_shared(self, input_ids: torch.Tensor, mask: torch.Tensor, placeholders: dict[str, torch.Tensor]) -> int:
        """
        How many of the turn's tokens `input_ids` `(1, S)`, of which `mask` `(1, S)` takes part in pre-fusion, begins
        with; 0 when that leaves out a placeholder, since images and videos are not kept in parts. One token at least is
        left to run.
        """
        length = min(input_ids.shape[1] - 1, self.input_ids.shape[1])
        differs = (input_ids[0, :length] != self.input_ids[0, :length]) | (mask[0, :length] != self.is_fused[:length])
        places = differs.nonzero()
        shared = int(places[0]) if len(places) else length
        return 0 if any(mask[:, shared:].any() for mask in placeholders.values()) else shared

    def crop(self, length: int) -> "LlavaMiniTurn":
        """The turn's first `length` tokens."""
        dropped = int(self.is_fused[length:].sum())
        visuals = {}
        for name, chunk in self.visuals.items():
            pairs = (tuple(tensor[:, :, : tensor.shape[2] - dropped] for tensor in pair) for pair in chunk.key_values)
            visuals[name] = replace(chunk, key_values=tuple(pairs))
        return LlavaMiniTurn(self.input_ids[:, :length], self.is_fused[:length], visuals, self.cache)


@dataclass(repr=False)
class LlavaMiniVisionContext:
    r"""
    Encoded images and videos, made by `encode_visuals` and reused by `generate(..., vision_context=...)`: later
    questions run text only.

    Args:
        visuals (`dict[str, LlavaMiniVisualChunk]`): "image" and "video" units of all rows, in order.
        sizes (`dict[str, list[int]]`): visual units of each image (1) and each video (its frames).
        rows (`dict[str, list[int]]`, *optional*): the row of each image and video; known when `input_ids` were given.
        num_rows (`int`, *optional*): rows of the batch, those without images and videos among them; known likewise.
        keep_text (`bool`): whether `generate` keeps the prompt's keys and values for the next turn.
        made_by (`str`, *optional*): the `fingerprint` of the model's vision side.
        turn (`LlavaMiniTurn`, *optional*): what it kept.
        budget (`PatchBudget`, *optional*): which patches pre-fusion read; all by default.
    """

    visuals: dict[str, LlavaMiniVisualChunk]
    sizes: dict[str, list[int]]
    rows: dict[str, list[int]] | None = None
    num_rows: int | None = None
    keep_text: bool = False
    made_by: str | None = None
    turn: LlavaMiniTurn | None = None
    budget: PatchBudget | None = None

    def __repr__(self) -> str:
        """In one line: whose images and videos, what is kept of them and where; none of the numbers in it."""
        parts = [] if self.num_rows is None else [_count(self.num_rows, "row")]
        for name, sizes in self.sizes.items():
            parts.append(_count(len(sizes), name) + (f" of {sum(sizes)} frames" if name == "video" else ""))
        kept = {
            "features": any(chunk.features is not None for chunk in self.visuals.values()),
            "key_values": any(chunk.key_values for chunk in self.visuals.values()),
        }
        kept = [name for name, is_kept in kept.items() if is_kept]
        nothing = "tokens alone" if self.visuals else "nothing"
        parts += [f"keeps {' and '.join(kept) or nothing}", _show_bytes(self.nbytes)]
        # Tokens first, which every chunk has unless it was emptied by hand.
        firsts = [tensor for chunk in self.visuals.values() for tensor in list(chunk.tensors().values())[:1]]
        parts += sorted({f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in firsts})
        parts += [] if self.budget is None else [str(self.budget)]
        parts += [] if self.turn is None else [f"text of {self.turn.input_ids.shape[-1]} tokens"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def check_budget(self, budget: PatchBudget | None):
        """
        Raises:
            ValueError: what is kept was made with another budget, and can't be made again.
        """
        is_final = self.keep_text or any(chunk.features is None for chunk in self.visuals.values())
        if budget != self.budget and is_final:
            own = "all patches" if self.budget is None else self.budget
            asked = "all patches" if budget is None else budget
            raise ValueError(
                f"This `vision_context` holds what pre-fusion made of {own}, but the call asks for {asked}: leave "
                "`prefusion_patches` and `prefusion_mass` out, or encode anew (keep='features' leaves the choice to "
                "each question)."
            )

    def check_made_by(self, parts: Iterable[nn.Module]):
        """
        Raises:
            ValueError: another model than the one with these `parts` made the context.
        """
        own = fingerprint(parts) if self.made_by is not None else None
        if own is not None and own != self.made_by:
            raise ValueError(
                "This `vision_context` was made by another model, or by this one before it was trained further: its "
                "numbers mean nothing here. Encode the images anew with this model's `encode_visuals`."
            )

    def open(self, encode: Encode) -> dict[str, LlavaMiniVisuals]:
        """What is kept, as `open_visuals` takes it; patch features are encoded again as somebody asks."""
        return {
            name: LlavaMiniVisuals(self.sizes[name], [chunk] if chunk.features is None else encode([chunk.features]))
            for name, chunk in self.visuals.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, the language model's cache included."""
        total = sum(t.nbytes for chunk in self.visuals.values() for t in chunk.tensors().values())
        return total if self.turn is None else total + self.turn.nbytes

    def to(self, device: torch.device | str) -> "LlavaMiniVisionContext":
        """A copy on `device`, without the text of earlier turns (it is run again with the next question)."""
        visuals = {
            name: chunk.from_tensors({key: tensor.to(device) for key, tensor in chunk.tensors().items()})
            for name, chunk in self.visuals.items()
        }
        return replace(self, visuals=visuals, turn=None)

    def __getitem__(self, rows: int | list[int]) -> "LlavaMiniVisionContext":
        """
        The images and videos of one row or some rows, in that order.

        Raises:
            ValueError: the rows are not known, since `encode_visuals` got no `input_ids`.
            IndexError: no such row.
        """
        if self.rows is None:
            raise ValueError("This context knows no rows: pass `input_ids` to `encode_visuals` as well.")
        wanted = [rows] if isinstance(rows, int) else list(rows)
        if absent := [row for row in wanted if not -self.num_rows <= row < self.num_rows]:
            raise IndexError(f"This context has {self.num_rows} row(s), so there is no row {absent[0]}.")
        rows = [row % self.num_rows for row in wanted]
        visuals, sizes, new_rows = {}, {}, {}
        for name, chunk in self.visuals.items():
            offsets = [0]
            for size in self.sizes[name]:
                offsets.append(offsets[-1] + size)
            items = [(new, i) for new, row in enumerate(rows) for i, own in enumerate(self.rows[name]) if own == row]
            if items:
                units = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for _, i in items])
                visuals[name] = chunk.select(units)
                sizes[name], new_rows[name] = [self.sizes[name][i] for _, i in items], [new for new, _ in items]
        return replace(self, visuals=visuals, sizes=sizes, rows=new_rows, num_rows=len(rows), turn=None)

    def save(self, path: str | os.PathLike):
        """Writes the context to a safetensors file, without the text of earlier turns."""
        tensors = {
            f"{name}.{key}": tensor.contiguous()
            for name, chunk in self.visuals.items()
            for key, tensor in chunk.tensors().items()
        }
        facts = {name: getattr(self, name) for name in ("sizes", "rows", "num_rows", "keep_text", "made_by")}
        facts = json.dumps(facts | {"budget": None if self.budget is None else asdict(self.budget)})
        save_file(tensors, path, metadata={METADATA: facts, CHECKSUM: str(checksum(tensors, facts))})

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu") -> "LlavaMiniVisionContext":
        """
        Reads what `save` wrote.

        Raises:
            ValueError: the file holds no context, or is damaged.
            FileNotFoundError: there is no file.
        """
        hint = "pass a file that `LlavaMiniVisionContext.save` wrote, or encode anew"
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged, or no vision context ({error}): {hint}.") from error
        if METADATA not in metadata:
            raise ValueError(f"{path} holds no vision context: {hint}.")
        if metadata.get(CHECKSUM) != str(checksum(tensors, metadata[METADATA])):
            raise ValueError(f"{path} is damaged, what it holds is not what was saved: {hint}.")
        facts = json.loads(metadata[METADATA])
        visuals = {}
        for name in facts["sizes"]:
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            visuals[name] = LlavaMiniVisualChunk.from_tensors(own)
        budget = facts.pop("budget", None)  # older files have none
        return cls(visuals, **facts, budget=None if budget is None else PatchBudget(**budget))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _show_bytes(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.1f} KiB"


def checksum(tensors: dict[str, torch.Tensor], facts: str) -> int:
    """CRC-32 of the facts, and of the names and bytes of all tensors."""
    value = zlib.crc32(facts.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy(), value)
    return value


def fingerprint(parts: Iterable[nn.Module]) -> str | None:
    """
    Tells the vision side of one model from another's: a hash of some numbers of each tensor of its parts, rounded to
    bfloat16, so that it is the same in every precision. `None` where weights are not at hand (offloaded, sharded).
    """
    tensors = [tensor for part in parts for tensor in part.state_dict().values() if tensor.numel()]
    if any(tensor.is_meta or type(tensor) not in (torch.Tensor, nn.Parameter) for tensor in tensors):
        return None
    samples = [t.flatten()[:: max(1, t.numel() // FINGERPRINT_SAMPLES)].to(torch.bfloat16) for t in tensors]
    numbers = torch.cat([sample.cpu() for sample in samples])
    return hashlib.sha256(numbers.view(torch.uint8).numpy()).hexdigest()
