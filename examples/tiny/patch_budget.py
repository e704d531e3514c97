"""
What a budget of patches in pre-fusion does to a checkpoint's answers, against four other ways to choose as many: random
patches, a regular grid, the patches least like the mean patch, and those that the tower's class token attends to.

    python examples/tiny/patch_budget.py --model examples/tiny/checkpoint --per_type 200 --seeds 11 12 13

Writes a table and a picture beside the benchmarks' (`examples/benchmarks/results/quality_budget.*`). Every choice is
made through the model's own `prefusion_patches`: only the weights that patches are ranked by are exchanged.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from evaluate import to_chat
from make_data import make_records
from matplotlib.figure import Figure
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mini import LlavaMiniVisionContext


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from shapes import RESULTS, write_results  # noqa: E402


SHARES = (0.5, 0.25, 0.1)
# Of pictures, which a fresh seed has drawn; clips take much longer to draw than to ask about.
TYPES = ("colour", "shape", "size", "position", "yes/no", "count", "relation", "digit", "number", "number colour")
LONGEST_ANSWER = 8  # tokens; these types are answered in fewer
OURS = "compressor's attention"


def rank_randomly(features: torch.Tensor, share: float, seen: torch.Tensor) -> torch.Tensor:
    """Weights `(U, P)` of patch features `(U, P, Dv)`."""
    return torch.rand(features.shape[:2])


def rank_by_grid(features: torch.Tensor, share: float, seen: torch.Tensor) -> torch.Tensor:
    """As even a grid as the number allows: a chequerboard for half of the patches, else a square of places."""
    side = round(features.shape[1] ** 0.5)
    weights = torch.zeros(side, side)
    if share == 0.5:
        weights[::2, ::2] = weights[1::2, 1::2] = 1
    else:
        count = int(round(share * side**2) ** 0.5)
        places = ((torch.arange(count) + 0.5) * side / count).long()
        weights[places[:, None], places] = 1
    return weights.flatten().expand(features.shape[:2])


def rank_by_difference(features: torch.Tensor, share: float, seen: torch.Tensor) -> torch.Tensor:
    """How little a patch is like the picture's mean patch, by cosine."""
    return 1 - torch.cosine_similarity(features, features.mean(1, keepdim=True), dim=-1)


def rank_by_class_token(features: torch.Tensor, share: float, seen: torch.Tensor) -> torch.Tensor:
    """What the class token attended to in the last layer of the tower that is run."""
    return seen


RANKS = {
    OURS: None,
    "random": rank_randomly,
    "regular grid": rank_by_grid,
    "least like the mean": rank_by_difference,
    "class token's attention": rank_by_class_token,
}


def encode(model, inputs: dict) -> tuple[LlavaMiniVisionContext, torch.Tensor]:
    """Patch features, and the class token's attention `(U, P)` in the tower's last layer, mean over heads."""
    seen = []

    def look(attention, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        split = (attention.num_heads, attention.head_dim)
        query = attention.q_proj(hidden[:, :1]).unflatten(-1, split)
        keys = attention.k_proj(hidden).unflatten(-1, split)
        weights = torch.einsum("bqhd,bkhd->bhk", query, keys) * attention.head_dim**-0.5
        seen.append(weights.softmax(-1).mean(1)[:, 1:])

    attention = model.model.vision_tower.encoder.layers[-1].self_attn
    hook = attention.register_forward_pre_hook(look, with_kwargs=True)
    context = model.encode_visuals(**inputs, keep="features")
    hook.remove()
    return context, torch.cat(seen)


def count_right(model, processor, records: list[dict], folder: Path) -> dict[tuple[str, float], int]:
    """Exact matches by choice and share; the tower runs once."""
    inputs = processor.apply_chat_template(
        [to_chat(record, folder) for record in records],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    context, seen = encode(model, inputs)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    wanted = [record["conversations"][1]["value"] for record in records]
    options = {"max_new_tokens": LONGEST_ANSWER, "do_sample": False, "vision_memory_budget": "8GiB"}
    right = {}
    for name, share in [(OURS, 1.0), *((name, share) for name in RANKS for share in SHARES)]:
        rank, hook = RANKS[name], None
        if rank is not None:

            def exchange(_, args, output, rank=rank, share=share):
                return output[0], rank(args[0], share, seen)[:, None]

            hook = model.model.compressor.register_forward_hook(exchange)
        ids = model.generate(**text, **options, vision_context=context, prefusion_patches=share)
        if hook is not None:
            hook.remove()
        made = processor.batch_decode(ids[:, text["input_ids"].shape[1] :], skip_special_tokens=True)
        right[name, share] = sum(answer.strip() == given for answer, given in zip(made, wanted))
    return right


def draw(rates: dict[tuple[str, float], list[float]], path: Path):
    """Exact matches over the share of patches, mean and range over the seeds."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name in RANKS:
        shares = [share for own, share in rates if own == name]
        values = [rates[name, share] for share in shares]
        means = [sum(own) / len(own) for own in values]
        spread = [[m - min(v) for m, v in zip(means, values)], [max(v) - m for m, v in zip(means, values)]]
        axis.errorbar(shares, means, spread, marker="o", capsize=3, label=name)
    axis.axhline(sum(rates[OURS, 1.0]) / len(rates[OURS, 1.0]), color="grey", linewidth=0.8)
    axis.set_xlabel("share of the patches that pre-fusion reads")
    axis.set_ylabel("exact matches")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "checkpoint"))
    parser.add_argument("--per_type", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="of the pictures")
    parser.add_argument("--name", default="quality_budget", help="of the table")
    parser.add_argument("--how", default="as shipped", help="how the model was trained, for the title")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    started = time.time()
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    by_type: dict = defaultdict(lambda: defaultdict(list))
    for seed in arguments.seeds:
        for kind in TYPES:
            with tempfile.TemporaryDirectory() as folder:
                records = make_records(Path(folder), "test", arguments.per_type, seed, [kind])
                for key, right in count_right(model, processor, records, Path(folder)).items():
                    by_type[key][kind].append(right / arguments.per_type)
            print(f"seed {seed}, {kind}: {time.time() - started:.0f} s", file=sys.stderr)
    rates = {key: [sum(own) / len(own) for own in zip(*kinds.values())] for key, kinds in by_type.items()}
    rows = [
        [
            share,
            name,
            f"{sum(own) / len(own):.3f}",
            f"{min(own):.3f} to {max(own):.3f}",
            *(f"{sum(by_type[name, share][kind]) / len(own):.3f}" for kind in TYPES),
        ]
        for (name, share), own in sorted(rates.items(), key=lambda item: -item[0][1])
    ]
    header = ["share of patches", "chosen by", "exact match", "of the seeds", *TYPES]
    facts = {"model": Path(arguments.model).name, "n a type and seed": arguments.per_type, "seeds": arguments.seeds}
    title = f"Answers of the small model with fewer patches in pre-fusion, {arguments.how}"
    write_results(arguments.name, title, header, rows, device="CPU, float32", **facts)
    draw(rates, RESULTS / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
