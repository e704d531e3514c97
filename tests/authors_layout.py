# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny made-up checkpoints in the authors' layout, written out by hand: the converter's names play no part."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 16,
}
CONFIG = {
    "model_type": "llava_mini_llama",
    "vocab_size": 304,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "mm_vision_tower": "vision_tower",
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "compressor_size": 2,
    "prefusion_layer_num": 2,
    "resolution_ratio": 1,
    "image_aspect_ratio": "pad",
}
TOWER_PREFIX = "model.vision_tower.vision_tower."


def tower_tensors(seed=1):
    """A CLIPVisionModel as transformers 4 saves it."""
    width, inner, patch = VISION["hidden_size"], VISION["intermediate_size"], VISION["patch_size"]
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((VISION["image_size"] // patch) ** 2 + 1, width),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    linears = {}
    for i in range(VISION["num_hidden_layers"]):
        norms += [f"encoder.layers.{i}.layer_norm{j}" for j in (1, 2)]
        linears |= {f"encoder.layers.{i}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        linears |= {f"encoder.layers.{i}.mlp.fc1": (inner, width), f"encoder.layers.{i}.mlp.fc2": (width, inner)}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"vision_model.{name}": tensor for name, tensor in random_tensors(shapes, seed).items()}


def language_tensors(config, seed=2):
    """A LlamaForCausalLM."""
    width = config["hidden_size"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        shapes |= decoder_layer_shapes(f"model.layers.{i}", config)
    return random_tensors(shapes, seed)


def decoder_layer_shapes(prefix, config):
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    kv_width = width // config["num_attention_heads"] * kv_heads
    return {
        f"{prefix}.self_attn.q_proj.weight": (width, width),
        f"{prefix}.self_attn.k_proj.weight": (kv_width, width),
        f"{prefix}.self_attn.v_proj.weight": (kv_width, width),
        f"{prefix}.self_attn.o_proj.weight": (width, width),
        f"{prefix}.mlp.gate_proj.weight": (inner, width),
        f"{prefix}.mlp.up_proj.weight": (inner, width),
        f"{prefix}.mlp.down_proj.weight": (width, inner),
        f"{prefix}.input_layernorm.weight": (width,),
        f"{prefix}.post_attention_layernorm.weight": (width,),
    }


def projector_tensors(config, seed=3):
    """`mm_projector`: nothing, one linear layer, or a sequence of them with activations between."""
    kind, vision, text = config.get("mm_projector_type", "linear"), VISION["hidden_size"], config["hidden_size"]
    if kind == "identity":
        return {}
    if kind == "linear":
        return random_tensors({"model.mm_projector.weight": (text, vision), "model.mm_projector.bias": (text,)}, seed)
    shapes = {}
    for i in range(int(kind[len("mlp") : -len("x_gelu")])):
        shapes[f"model.mm_projector.{2 * i}.weight"] = (text, vision if i == 0 else text)
        shapes[f"model.mm_projector.{2 * i}.bias"] = (text,)
    return random_tensors(shapes, seed)


def new_tensors(config, seed=4):
    """Compressor and pre-fusion, which plain LLaVA does not have."""
    width, size = VISION["hidden_size"], config.get("compressor_size", 2)
    shapes = {f"model.compressor.{name}": (size**2, width) for name in ("query", "pos_embed")}
    shapes |= {f"model.compressor.{norm}.{kind}": (width,) for norm in ("ln_q", "ln_kv") for kind in ("weight", "bias")}
    shapes |= {
        "model.compressor.attn.in_proj_weight": (3 * width, width),
        "model.compressor.attn.in_proj_bias": (3 * width,),
        "model.compressor.attn.out_proj.weight": (width, width),
        "model.compressor.attn.out_proj.bias": (width,),
    }
    for i in range(config.get("prefusion_layer_num", 4)):
        shapes |= decoder_layer_shapes(f"model.prefusion_layers.{i}", config)
    return random_tensors(shapes, seed)


def all_tensors(config):
    """Everything but the tower."""
    return language_tensors(config) | projector_tensors(config) | new_tensors(config)


def random_tensors(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if "norm" in name and len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


def write_tower(folder, tensors=None, config=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or VISION))
    save_file(tensors or tower_tensors(), folder / "model.safetensors")


def write_weights(folder, tensors, kind="safetensors", shards=1):
    """The weights in files as `save_pretrained` names them."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    save = save_file if kind == "safetensors" else torch.save
    if shards == 1:
        save(tensors, folder / f"{stem}.{kind}")
        return
    weight_map = {name: f"{stem}-{i % shards + 1:05}-of-{shards:05}.{kind}" for i, name in enumerate(sorted(tensors))}
    for file_name in set(weight_map.values()):
        save({name: tensors[name] for name, file in weight_map.items() if file == file_name}, folder / file_name)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_checkpoint(folder, config, tensors, tower="beside", **files):
    """
    A whole checkpoint.

    Args:
        tower: "beside" (a folder that `mm_vision_tower` names), "inside" (its weights in the checkpoint, only its
            configuration beside) or "nowhere".
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tower != "nowhere":
        write_tower(folder / "vision_tower")
    if tower == "inside":
        (folder / "vision_tower" / "model.safetensors").unlink()
        tensors = tensors | {TOWER_PREFIX + name: tensor for name, tensor in tower_tensors().items()}
    write_weights(folder, tensors, **files)
    write_vicuna_tokenizer(folder)
    return folder


def write_vicuna_tokenizer(folder):
    """A tokenizer of bytes with Llama 2's special tokens, 304 in all, none of them spare."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = ["▁", *map(chr, range(ord("a"), ord("z") + 1)), *"ABCDEFGHIJKLMNOPQ"]
    vocabulary |= {letter: 259 + i for i, letter in enumerate(letters)}
    vocabulary["ab"] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, [("a", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def copy_golden(case, folder):
    """A golden case to spoil; returns the authors' checkpoint in it."""
    shutil.copytree(Path(__file__).parent / "golden" / case, folder / case)
    return folder / case / "original"


def read_weights(folder):
    """All tensors of a checkpoint."""
    tensors = {}
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        tensors |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return tensors


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
