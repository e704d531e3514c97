# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters over a base model: the converter's merge is PEFT's."""

import dataclasses
import json

import pytest
import torch
from authors_layout import (
    CONFIG,
    all_tensors,
    change_json,
    projector_tensors,
    read_weights,
    write_checkpoint,
    write_tower,
    write_weights,
)
from safetensors.torch import load_file, save_file
from torch import nn

from llava_mini.conversion.command import convert, main


peft = pytest.importorskip("peft", reason="the merge is compared with PEFT's")


class TestLora:
    """An adapter and `non_lora_trainables.bin` over a base model, as LLaVA's training script leaves them."""

    TARGETS = ("q_proj", "v_proj", "down_proj")

    @pytest.fixture
    def base(self, tmp_path):
        return write_checkpoint(tmp_path / "base", CONFIG, all_tensors(CONFIG), tower="nowhere")

    def write_adapter(self, tmp_path, base, dtype=torch.float32, **options):
        """Trains nothing: an adapter of random matrices on the authors' names, saved by PEFT; and PEFT's merge."""
        tensors = {name: tensor.to(dtype) for name, tensor in all_tensors(CONFIG).items()}
        write_weights(base, tensors)
        bare = NamedTensors(tensors)
        config = peft.LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": list(self.TARGETS)} | options))
        model = peft.get_peft_model(bare, config, autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.3).to(dtype)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        change_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_tower(folder / "vision_tower")
        others = {name: tensor.to(dtype) for name, tensor in projector_tensors(CONFIG, seed=8).items()}
        trained = {f"base_model.model.{name}": tensor for name, tensor in others.items()}
        torch.save(trained, folder / "non_lora_trainables.bin")
        merged = peft.PeftModel.from_pretrained(NamedTensors(tensors), folder).merge_and_unload().named_tensors()
        return folder, merged | others

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"use_rslora": True},
            {"alpha_pattern": {"proj": 99, "v_proj": 3}, "rank_pattern": {"down_proj": 2}},
            {"target_modules": ["model.prefusion_layers.1.self_attn.k_proj", "model.compressor.attn.out_proj"]},
        ],
        ids=["plain", "rslora", "patterns", "new parts"],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_merge_equals_pefts(self, tmp_path, base, dtype, options):
        adapter, merged = self.write_adapter(tmp_path, base, dtype, **options)
        convert(adapter, tmp_path / "output", verify=True)
        whole = write_checkpoint(tmp_path / "whole", CONFIG, merged)
        convert(whole, tmp_path / "expected")
        expected, found = read_weights(tmp_path / "expected"), read_weights(tmp_path / "output")
        plain = read_weights(base)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(found[name], expected[name]), name
        changed = {name for name in merged if not torch.equal(merged[name], plain[name])}
        assert changed > set(projector_tensors(CONFIG))

    def test_base_model_on_the_command_line_counts(self, tmp_path, base):
        adapter, _ = self.write_adapter(tmp_path, base)
        change_json(adapter / "adapter_config.json", base_model_name_or_path="no/where")
        with pytest.raises(ValueError, match="'no/where' is neither.*--base-model"):
            convert(adapter, tmp_path / "output")
        assert main([str(adapter), str(tmp_path / "output"), "--base-model", str(base)]) == 0
        change_json(adapter / "adapter_config.json", base_model_name_or_path="../base")  # seen from the adapter
        convert(adapter, tmp_path / "other")

    def test_nothing_but_lora_in_an_old_file(self, tmp_path, base):
        adapter, _ = self.write_adapter(tmp_path, base)
        convert(adapter, tmp_path / "expected")
        (adapter / "non_lora_trainables.bin").unlink()
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        path.unlink()
        old_names = {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
        torch.save(old_names, adapter / "adapter_model.bin")
        convert(adapter, tmp_path / "output")
        found, expected = read_weights(tmp_path / "output"), read_weights(tmp_path / "expected")
        same = {name for name in expected if torch.equal(found[name], expected[name])}
        assert expected.keys() - same == {name for name in expected if "multi_modal_projector" in name}

    def test_report_says_where_everything_is_from(self, tmp_path, base):
        adapter, _ = self.write_adapter(tmp_path, base)
        report = convert(adapter, tmp_path / "output")
        projector = projector_tensors(CONFIG)
        assert projector.keys() <= report.used.keys()
        assert f"{base}: model.layers.0.self_attn.q_proj.weight + LoRA" in report.used
        assert f"{base}: model.norm.weight" in report.used
        replaced = {name for name, reason in report.ignored.items() if reason == "replaced by what was trained"}
        assert replaced == {f"{base}: {name}" for name in projector}

    def test_what_is_not_plain_lora_is_refused(self, tmp_path, base):
        adapter, _ = self.write_adapter(tmp_path, base)
        change_json(adapter / "adapter_config.json", use_dora=True)
        with pytest.raises(ValueError, match="describes LORA, use_dora.*merge it with PEFT first"):
            convert(adapter, tmp_path / "output")
        change_json(adapter / "adapter_config.json", use_dora=False, peft_type="IA3")
        with pytest.raises(ValueError, match="describes IA3"):
            convert(adapter, tmp_path / "output")
        change_json(adapter / "adapter_config.json", peft_type="LORA", init_lora_weights="pissa")
        with pytest.raises(ValueError, match="describes LORA, init_lora_weights 'pissa'"):
            convert(adapter, tmp_path / "output")
        change_json(adapter / "adapter_config.json", init_lora_weights="gaussian")
        tensors = load_file(adapter / "adapter_model.safetensors")
        save_file(
            tensors | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 304)},
            adapter / "adapter_model.safetensors",
        )
        with pytest.raises(ValueError, match="lora_embedding_A', which is not plain LoRA"):
            convert(adapter, tmp_path / "output")
        assert not (tmp_path / "output").exists()

    OTHER_FORMULAS = {
        field.name for field in dataclasses.fields(peft.LoraConfig) if field.metadata.get("is_lora_variant")
    }

    @pytest.mark.parametrize(
        "name",
        sorted(
            OTHER_FORMULAS
            | {
                "fan_in_fan_out",
                "layer_replication",
                "lora_bias",
                "target_parameters",
                "trainable_token_indices",
                "use_qalora",
            }
        ),
    )
    def test_variants_of_lora_are_refused(self, tmp_path, name):
        """Also those that a newer PEFT brings."""
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", name: [1]}))
        with pytest.raises(ValueError, match=f"describes LORA, {name}, but"):
            convert(tmp_path, tmp_path / "output", base_model="never looked at")

    def test_adapter_of_another_model(self, tmp_path, base):
        adapter, _ = self.write_adapter(tmp_path, base)
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        first = next(name for name in tensors if "lora_B" in name)
        save_file(tensors | {first: torch.zeros(99, 4)}, path)
        with pytest.raises(ValueError, match=r"have shapes \(99, 4\).*--base-model"):
            convert(adapter, tmp_path / "output")
        save_file(tensors | {first: torch.zeros(len(tensors[first]), 3)}, path)
        with pytest.raises(ValueError, match=r", 3\) and \(4, .*--base-model"):
            convert(adapter, tmp_path / "output")
        save_file({name: t for name, t in tensors.items() if name != first}, path)
        with pytest.raises(ValueError, match="only one of two matrices"):
            convert(adapter, tmp_path / "output")
        save_file({name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}, path)
        with pytest.raises(ValueError, match="changes 'model.layers.7.*which the base model does not have"):
            convert(adapter, tmp_path / "output")
        assert not (tmp_path / "output").exists()


class NamedTensors(nn.Module):
    """Linear layers at the authors' names, for PEFT to work on; what is no matrix of a linear layer is left out."""

    def __init__(self, tensors):
        super().__init__()
        self.others = {}
        for name, tensor in tensors.items():
            path, _, kind = name.rpartition(".")
            is_linear = kind == "weight" and tensor.ndim == 2 and "embed_tokens" not in name
            if not is_linear:
                self.others[name] = tensor
                continue
            linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
            linear.weight.data = tensor.clone()
            parent = self
            for part in path.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(path.split(".")[-1], linear)

    def named_tensors(self):
        return dict(self.state_dict()) | self.others
