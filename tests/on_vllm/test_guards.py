"""What is refused, by name, because answers would be wrong."""

import pytest


pytest.importorskip("vllm.engine", reason="vLLM is not installed")

import shutil
import subprocess
import sys

from asking import engine

from llava_mini.conversion.hub import CardFacts, prepare_repository
from llava_mini.vllm.serve import check_installation
from llava_mini.vllm.video import LlavaMiniVideoLoader


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"enable_mm_embeds": True}, "--enable-mm-embeds"),
        ({"video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ({"mm_processor_kwargs": {"crop_size": 10}}, "--mm-processor-kwargs"),
        ({"tokenizer_mode": "mistral"}, "--tokenizer-mode"),
        ({"mm_encoder_only": True}, "--mm-encoder-only"),
        ({"enable_lora": True}, "LoRA"),
        ({"model_impl": "transformers"}, "not a registered model in the Transformers library"),
    ],
    ids=str,
)
def test_settings_that_would_be_wrong_are_named(checkpoints, settings, name):
    with pytest.raises(Exception, match=name), engine(checkpoints("tiny"), **settings):
        pass


START = """
import sys
from vllm import LLM
if __name__ == "__main__":
    LLM(sys.argv[1], max_model_len=512, enforce_eager=True, trust_remote_code=len(sys.argv) > 2)
    print("STARTED")
"""


def start(checkpoint, monkeypatch, *options):
    monkeypatch.setenv("VLLM_PLUGINS", "")
    command = [sys.executable, "-c", START, str(checkpoint), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "STARTED" not in done.stdout
    return done.stderr


def test_without_the_plugin_a_checkpoint_is_unknown(checkpoints, monkeypatch):
    assert "llava_mini" in start(checkpoints("tiny"), monkeypatch)


def test_without_the_plugin_code_from_the_hub_is_no_way_round(checkpoints, monkeypatch, tmp_path):
    """A repository with the model code beside it, which vLLM would run without pre-fusion."""
    shutil.copytree(checkpoints("tiny"), tmp_path / "repository")
    prepare_repository(tmp_path / "repository", "someone/tiny", CardFacts("Tiny"))
    assert "llava-mini-hf[vllm]" in start(tmp_path / "repository", monkeypatch, "trust_remote_code")


def test_installation_is_checked(monkeypatch):
    check_installation()
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    with pytest.raises(ValueError, match="VLLM_PLUGINS"):
        check_installation()


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"fps": -2}, {"num_frames": "3"}, {"fps": True}, {"other": 1}])
def test_wrong_sampling_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LlavaMiniVideoLoader.load_bytes(b"", **options)


def test_sampling_is_the_checkpoints_unless_it_is_chosen():
    assert LlavaMiniVideoLoader.load_bytes(b"a", num_frames=-1)[0].sampling == {}
    assert LlavaMiniVideoLoader.load_bytes(b"a", num_frames=32, fps=2)[0].sampling == {"fps": 2}
    assert LlavaMiniVideoLoader.load_bytes(b"a", num_frames=32)[0].sampling == {"num_frames": 32}
