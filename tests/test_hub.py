"""To the Hub and back: the real client against a stand-in, and the model code where the package isn't installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError
from local_hub import LocalHub
from safetensors.torch import load_file, save_file

from llava_mini.conversion import command as converter
from llava_mini.conversion import hub as hub_module
from llava_mini.conversion.hub import (
    CODE_FILES,
    CardFacts,
    count_weights,
    main,
    make_model_card,
    prepare_repository,
    read_facts,
)


IMAGE = Path(__file__).parent / "golden/preprocess/image0.png"
REPOSITORY = "someone/tiny-llava-mini"
# The package itself must not be found: what loads is the repository's code.
WITHOUT_PACKAGE = "import sys; sys.modules['llava_mini'] = None\n"
PUSH = """
import sys
from llava_mini.conversion.command import main
sys.exit(main(sys.argv[1:]))
"""
ORIGINAL = Path(__file__).parent / "golden/standard/original"
LOAD = """
import sys, torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline
repository, image = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
exact = AutoProcessor.from_pretrained(repository, trust_remote_code=True, backend="pil")
assert type(processor.image_processor).__name__ == "LlavaMiniImageProcessor"
assert type(exact.image_processor).__name__ == "LlavaMiniImageProcessorPil"
for auto_class in (AutoModel, AutoModelForMultimodalLM):
    auto_class.from_pretrained(repository, trust_remote_code=True)
ask = pipeline("image-text-to-text", model=repository, trust_remote_code=True)
content = [{"type": "image", "path": image}, {"type": "text", "text": "What is in the picture?"}]
options = {"do_sample": False, "max_new_tokens": 6}
answer = ask(text=[{"role": "user", "content": content}], generate_kwargs=options)
print("ANSWER", repr(answer[0]["generated_text"][-1]["content"]))
"""


def run(code: str, *arguments, home: Path, **environment) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_of_nobody",
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)


def answer_of(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    return re.search(r"^ANSWER (.+)$", result.stdout, re.MULTILINE)[1]


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted("standard"), tmp_path / "folder")


@pytest.mark.slow
def test_push_and_load_without_the_package(folder, tmp_path):
    hub = LocalHub()
    with hub.serve() as address:
        home = tmp_path / "pusher"
        home.mkdir()
        result = run(PUSH, ORIGINAL, home / "converted", "--push-to-hub", REPOSITORY, home=home, HF_ENDPOINT=address)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"/{REPOSITORY}/commit/" in result.stdout
        assert {*CODE_FILES, "README.md", "config.json", "model.safetensors"} <= hub.files[REPOSITORY].keys()
        home = tmp_path / "user"
        home.mkdir()
        remote = answer_of(run(WITHOUT_PACKAGE + LOAD, REPOSITORY, IMAGE, home=home, HF_ENDPOINT=address))
    # The same with the package, from the directory.
    code = LOAD.replace("import sys, torch", "import sys, torch, llava_mini")
    code = code.replace('assert type(model).__module__.startswith("transformers_modules."), type(model)', "")
    assert answer_of(run(code, folder, IMAGE, home=tmp_path)) == remote


def test_refusals(folder, tmp_path, capsys):
    hub = LocalHub()
    hub.refuse = True
    with hub.serve() as address:
        result = run(PUSH, ORIGINAL, tmp_path / "new", "--push-to-hub", REPOSITORY, home=tmp_path, HF_ENDPOINT=address)
    assert result.returncode == 2
    assert "error: The Hub refuses" in result.stderr and "hf auth login" in result.stderr
    assert main([str(tmp_path), REPOSITORY, "--prepare-only"]) == 2
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path), REPOSITORY, "--prepare-only"]) == 2
    assert "has no processor_config.json" in capsys.readouterr().err
    (tmp_path / "facts.json").write_text('{"titel": "typo"}')
    assert main([str(folder), REPOSITORY, "--facts", str(tmp_path / "facts.json"), "--prepare-only"]) == 2
    assert "describes no model card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", REPOSITORY, "--card-facts", "nowhere.json"], "nowhere.json describes no model card"),
        (["--push-to-hub", "a/b/c"], "'a/b/c'"),
    ],
)
def test_what_can_not_be_pushed_is_told_before_converting(tmp_path, capsys, options, message):
    assert converter.main([str(ORIGINAL), str(tmp_path / "converted"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_hub_out_of_reach(folder, monkeypatch, capsys):
    created = []

    class Api:
        def create_repo(self, *arguments, **options):
            created.append((arguments, options))
            raise HTTPError("no route")

    monkeypatch.setattr(hub_module, "HfApi", Api)
    assert main([str(folder), REPOSITORY, "--private"]) == 2
    assert "error: The Hub can't be reached (no route): upload" in capsys.readouterr().err
    # A repository that is there already takes the next version.
    assert created == [((REPOSITORY,), {"private": True, "exist_ok": True})]


def test_card_is_filled_and_its_snippet_runs(folder, tmp_path, monkeypatch):
    shutil.copyfile(IMAGE, tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    facts = CardFacts("Tiny", "A tiny checkpoint.", base_model="someone/llama")
    prepare_repository(folder, str(folder), facts)
    card = (folder / "README.md").read_text()
    assert "base_model: someone/llama" in card and "# Tiny" in card and "A tiny checkpoint." in card
    # The model's own numbers: C = 1, N = 1, 2 layers of pre-fusion.
    assert "| 1 (C = 1) |" in card and "| 1 (N = 1) |" in card and "| pre-fusion layers | 2 |" in card
    assert not re.search(r"(?<!\{)\{[a-z_]+\}", card)
    snippet = re.search(r"```python\n(.+?)```", card, re.DOTALL)[1].replace("max_new_tokens=64", "max_new_tokens=4")
    result = run(WITHOUT_PACKAGE + snippet, home=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()


def test_card_says_what_the_model_is(converted, tmp_path):
    folder = shutil.copytree(converted("high_resolution"), tmp_path / "folder")
    parameters = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert count_weights(folder) == (parameters, (folder / "model.safetensors").stat().st_size)
    card = make_model_card(folder, REPOSITORY, read_facts(REPOSITORY, None))
    for line in (
        "# tiny-llava-mini",
        "| language model | llama, 2 layers, width 64, vocabulary 408 |",
        "| vision tower | clip_vision_model, 2 layers read, width 32, 56 pixels, patches of 14 |",
        "| vision tokens an image or frame | 4 (C = 2) |",
        "| crops an image | 5 (N = 2) |",
        f"| parameters | {parameters:,} |",
    ):
        assert line in card.split("\n")


def test_card_of_the_8b_release(folder):
    cards = Path(__file__).parents[1] / "model_cards"
    facts = str(cards / "llava-mini-llama-3.1-8b.json")
    assert main([str(folder), REPOSITORY, "--facts", facts, "--prepare-only"]) == 0
    card = (folder / "README.md").read_text()
    assert "license: llama3.1" in card and "Built with Llama" in card and "has not been" not in card.split("## What")[0]
    assert "base_model: meta-llama/Llama-3.1-8B-Instruct" in card


def test_a_card_that_is_there_is_kept(folder, tmp_path, capsys, caplog):
    card = folder / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\nMeasured.\n")
    assert main([str(folder), REPOSITORY, "--prepare-only"]) == 0
    assert card.read_text().endswith("Measured.\n") and f"{card} is kept as it is: --replace-card" in caplog.text
    assert f"Prepared {folder}: README.md, {len(CODE_FILES)} files of code" in capsys.readouterr().out
    assert all((folder / name).is_file() for name in CODE_FILES)
    assert main([str(folder), REPOSITORY, "--prepare-only", "--replace-card"]) == 0
    assert "license: other" in card.read_text()


def test_the_cards_dtype_is_that_of_the_weights(folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    card = make_model_card(folder, REPOSITORY, read_facts(REPOSITORY, None))
    assert re.search(r"^\| weights \| float16, ", card, re.MULTILINE)


def test_every_imported_file_travels():
    package = Path(__file__).parents[1] / "src/llava_mini"
    for name in CODE_FILES:
        imports = re.findall(r"^\s*from \.(\S+) import", (package / name).read_text(), re.MULTILINE)
        assert {f"{module}.py" for module in imports} <= set(CODE_FILES), name
