"""One behaviour on every version of transformers in the range, and a word where the range ends."""

import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from tiny import ROWS, collate, make_row, make_rows, tiny_model
from transformers import DynamicCache

from llava_mini import versions_llava_mini as versions
from llava_mini.cli import main
from llava_mini.conversion.hub import prepare_repository, read_facts


ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llava-mini-hf" / "transformers"
# The ends of the range, the one that vLLM pins, and the last before the cache was renamed.
VERSIONS = ("5.18.0", "5.20.2", "5.23.0", "5.24.0")
GREEDY = {"do_sample": False, "max_new_tokens": 4}


def path_with(version: str) -> str:
    """What PYTHONPATH has to be for `version` of transformers; skips when it can't be had."""
    if version == transformers.__version__:
        return ""
    folder = CACHE / version
    if not (folder / "transformers").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*command, f"transformers=={version}"], capture_output=True, text=True, timeout=300)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            pytest.skip(f"transformers {version} can't be downloaded: {last_line}")
    return str(folder)


def run(arguments: list[str], version: str, **environment) -> subprocess.CompletedProcess:
    path = path_with(version)
    environment = os.environ | ({"PYTHONPATH": path} if path else {}) | {"HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_goldens_on_every_version(version):
    done = run(["-m", "pytest", "-n", "0", "tests/parity"], version)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d+ passed in", done.stdout) and "skipped" not in done.stdout


USE_REPOSITORY = """
import sys
sys.modules["llava_mini"] = None
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([[model.config.image_token_id] * model.config.num_image_tokens + [7, 8, 9]])
vision = model.config.vision_config
pixels = torch.zeros(1, model.config.num_crops, 3, vision.image_size, vision.image_size)
outputs = model(input_ids=ids, pixel_values=pixels)
assert outputs.cache.get_seq_length() == ids.shape[1]
print("LOGITS", [round(value, 4) for value in outputs.logits[0, -1, :5].tolist()])
"""


@pytest.fixture(scope="module")
def repository(converted, tmp_path_factory):
    """A converted checkpoint with the model code beside it, as on the Hub."""
    folder = shutil.copytree(converted("standard"), tmp_path_factory.mktemp("repository") / "folder")
    prepare_repository(folder, "someone/tiny", read_facts("someone/tiny", None))
    return folder


@pytest.mark.slow
def test_code_on_the_hub_runs_on_both_ends_of_the_range(repository, tmp_path):
    answers = set()
    for version in (VERSIONS[0], VERSIONS[-1]):
        done = run(["-c", USE_REPOSITORY, str(repository)], version, HF_HOME=str(tmp_path / version))
        assert done.returncode == 0, done.stderr[-3000:]
        assert "not tested on this transformers" not in done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1 and "LOGITS" in answers.pop()


@pytest.mark.parametrize("bounds", [((5, 0), (5, 18)), ((6, 0), (6, 1))], ids=["newer than the range", "older"])
def test_code_on_the_hub_warns_once_outside_of_the_range(repository, tmp_path, bounds):
    folder = shutil.copytree(repository, tmp_path / "folder")
    code = (folder / "versions_llava_mini.py").read_text()
    for name, bound in zip(("OLDEST_TRANSFORMERS", "FIRST_UNTESTED_TRANSFORMERS"), bounds):
        code = code.replace(f"{name} = {getattr(versions, name)}", f"{name} = {bound}")
    (folder / "versions_llava_mini.py").write_text(code)
    done = run(["-c", USE_REPOSITORY, str(folder)], transformers.__version__, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("not tested on this transformers") == 1
    assert f"llava-mini-hf {versions.PACKAGE_VERSION}\n" in done.stderr
    oldest, untested = (".".join(map(str, bound)) for bound in bounds)
    said = f"transformers {transformers.__version__} (OUTSIDE the tested range, >={oldest},<{untested})"
    assert said in done.stderr


@pytest.mark.parametrize(
    ("version", "tested"),
    [("5.17.1", False), ("5.18.0", True), ("5.24.3", True), ("5.25.0.dev0", False), ("6.0.0", False)],
)
def test_range(version, tested):
    assert versions.is_tested(version) == tested


def test_bounds_are_those_of_the_distribution():
    requirements = [line for line in metadata.requires("llava-mini-hf") if "extra ==" not in line]
    oldest, untested = versions.OLDEST_TRANSFORMERS, versions.FIRST_UNTESTED_TRANSFORMERS
    bounds = next(line for line in requirements if line.startswith("transformers"))
    assert set(bounds.removeprefix("transformers").split(",")) == {
        ">={}.{}".format(*oldest),
        "<{}.{}".format(*untested),
    }
    assert [line for line in requirements if "<" not in line] == []
    assert metadata.version("llava-mini-hf") == versions.PACKAGE_VERSION


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    ours, upstreams, torchs = printed.splitlines()
    assert ours == f"llava-mini-hf {versions.PACKAGE_VERSION}"
    assert upstreams.startswith(f"transformers {transformers.__version__} (")
    assert torchs == f"torch {torch.__version__}"
    assert ("OUTSIDE" in printed) == (not versions.is_tested(transformers.__version__))


@pytest.fixture
def deprecations():
    """What transformers' logger says about old names while a test runs; it warns once a process, so it is reset."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"use_cache": False}])
def test_our_code_uses_no_old_name(deprecations, options):
    model = tiny_model(compressor_size=2)
    inputs = collate([make_row(model.config, ROWS["image and video"])])
    model.generate(**inputs, **GREEDY, **options)
    model(**inputs, labels=inputs["input_ids"])
    model.model(**inputs, return_dict=False)
    assert [message for message in deprecations if "deprecated" in message] == []


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", versions.CACHE_NAMES)
def test_a_cache_has_two_names(name):
    model = tiny_model()
    row = make_row(model.config, ROWS["one image"])
    inputs = collate([row])
    for part in (model, model.model):
        cache = DynamicCache()
        outputs = part(**inputs, **{name: cache})
        for same in (outputs.cache, outputs.past_key_values, outputs["cache"], outputs["past_key_values"]):
            assert same is cache
        assert "cache" in outputs and "past_key_values" in outputs
        assert outputs.get("cache") is outputs.get("past_key_values") is cache
        assert cache.get_seq_length() == len(row.input_ids)
        assert any(value is cache for value in outputs.to_tuple())
    first = model.generate(**inputs, **GREEDY, **{name: DynamicCache()}, return_dict_in_generate=True)
    assert first.cache is first.past_key_values is first["cache"] is first["past_key_values"]
    assert first.cache.get_seq_length() == first.sequences.shape[1] - 1
    mask = torch.ones(1, first.sequences.shape[1] + 1, dtype=torch.long)
    ids = torch.cat([first.sequences, torch.tensor([[7]])], dim=1)
    second = model.generate(input_ids=ids, attention_mask=mask, **GREEDY, **{name: first.cache})
    raw = collate([row]) | {"input_ids": ids, "attention_mask": mask}
    raw["text_fusion_mask"] = torch.arange(ids.shape[1])[None] < len(row.input_ids)
    assert second[0, ids.shape[1]] == model(**raw).logits[0, -1].argmax()


def test_beams_answer_to_both_names_too():
    model = tiny_model()
    inputs = collate(make_rows(model.config, ["one image", "text only"]))
    made = model.generate(**inputs, **GREEDY, num_beams=2, return_dict_in_generate=True)
    assert made.cache is made.past_key_values is made["cache"]
    assert isinstance(made, transformers.generation.GenerateBeamDecoderOnlyOutput)


def test_the_old_name_warns_where_transformers_does():
    model = tiny_model()
    inputs = collate([make_row(model.config, ROWS["text only"])])
    for call in (model, model.model, model.generate):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(**inputs, past_key_values=DynamicCache())
        caught = [warning for warning in caught if "`past_key_values` is deprecated" in str(warning.message)]
        assert len(caught) == (versions.CACHE_NAME == "cache")
        assert all(warning.category is FutureWarning for warning in caught)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_two_caches_are_refused():
    model = tiny_model()
    inputs = collate([make_row(model.config, ROWS["text only"])])
    both = {name: DynamicCache() for name in versions.CACHE_NAMES}
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match="two caches"):
            call(**inputs, **both)
    same = dict.fromkeys(versions.CACHE_NAMES, DynamicCache())
    assert model(**inputs, **same).cache is same["cache"]


def test_outputs_follow_upstreams_newest_names():
    model = tiny_model(compressor_size=2)
    inputs = collate(make_rows(model.config, ["two images", "one video"]))
    outputs = model(**inputs, output_compressor_attentions=True)
    assert [tuple(tokens.shape) for tokens in outputs.image_outputs.pooler_output] == [(4, 32)] * 2
    assert [tuple(tokens.shape) for tokens in outputs.video_outputs.pooler_output] == [(12, 32)]
    assert torch.equal(outputs.image_hidden_states, torch.cat(list(outputs.image_outputs.pooler_output)))
    assert torch.equal(outputs.video_hidden_states, outputs.video_outputs.pooler_output[0])
    features = model.get_image_features(inputs["pixel_values"])
    torch.testing.assert_close(outputs.image_hidden_states, torch.cat(list(features.pooler_output)))
    assert outputs.image_outputs.compressor_attentions.shape[0] == 2
    assert outputs.compressor_attentions.shape[0] == 2 + 3
    # As a tuple, what an encoder returned is a tuple too.
    assert isinstance(outputs.to_tuple()[list(outputs.keys()).index("image_outputs")], tuple)
    text = model(**collate(make_rows(model.config, ["text only"])))
    assert text.image_outputs is None and text.image_hidden_states is None and text.video_hidden_states is None
