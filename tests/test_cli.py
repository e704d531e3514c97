"""The command line, run as a user runs it."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from test_video_streaming import write_scenes, write_video

from llava_mini import cli


IMAGE = str(Path(__file__).parent / "golden/preprocess/image0.png")
CHECKPOINT = Path(__file__).parents[1] / "examples/tiny/checkpoint"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("videos") / "video.mp4", 12, fps=4))


@pytest.fixture
def model(converted):
    return str(converted("standard"))


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


GREEDY = ("--temperature", 0, "--max-new-tokens", 6)


def test_ask_about_an_image(capsys, model):
    status, streamed, _ = run(capsys, "ask", "--model", model, "--image", IMAGE, "--query", "What is this?", *GREEDY)
    assert status == 0 and streamed.strip()
    status, output, _ = run(
        capsys, "ask", "--model", model, "--image", IMAGE, "--query", "What is this?", *GREEDY, "--json"
    )
    facts = json.loads(output)
    assert facts["answer"] == streamed.strip()
    assert (facts["vision_tokens"], facts["new_tokens"], facts["frames"]) == (1, 6, [])


def test_answers_begin_with_their_first_letter(capsys, tmp_path):
    """The small model's words begin with a space, streamed or not."""
    picture = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 60, 60), fill="red")
    picture.save(tmp_path / "red.png")
    arguments = ("--image", tmp_path / "red.png", "--query", "What colour is the circle?", "--temperature", 0)
    for options in ((), ("--num-beams", 2)):
        _, output, _ = run(capsys, "ask", "--model", CHECKPOINT, *arguments, *options)
        assert output == "red\n"


def test_ask_about_several_images_and_a_video(capsys, model, video):
    arguments = ("--image", IMAGE, "--image", IMAGE, "--video", video, "--query", "Compare.", *GREEDY, "--json")
    _, output, _ = run(capsys, "ask", "--model", model, *arguments)
    facts = json.loads(output)
    assert (facts["frames"], facts["vision_tokens"]) == ([3], 5)
    _, output, _ = run(capsys, "ask", "--model", model, *arguments, "--num-frames", 7)
    assert json.loads(output)["frames"] == [7]


def test_fewer_patches_and_frames(capsys, model, tmp_path):
    video = write_scenes(tmp_path / "lecture.mp4", [60] * 3 + [160] * 2)
    asked = ("--model", model, "--video", video, "--query", "What?", *GREEDY)
    output = run(capsys, "ask", *asked, "--skip-still", 8, "--prefusion-patches", 0.5, "--json")[1]
    facts = json.loads(output)
    assert (facts["frames"], facts["times"]) == ([2], [[pytest.approx(0, abs=1), pytest.approx(3, abs=1)]])
    whole = json.loads(run(capsys, "ask", *asked, "--json")[1])
    assert (whole["frames"], len(whole["times"][0])) == ([5], 5)
    assert run(capsys, "ask", *asked, "--prefusion-mass", 0.5)[0] == 0
    status, _, error = run(
        capsys, "ask", "--model", model, "--image", IMAGE, "--query", "What?", *GREEDY, "--skip-still", 8
    )
    assert status == 2 and "--skip-still leaves out frames of videos, never images" in error
    assert run(capsys, "ask", *asked, "--skip-still", 300)[0] == 2
    for wrong in (
        ("--prefusion-patches", 0),
        ("--prefusion-mass", 1),
        ("--prefusion-patches", 0.5, "--prefusion-mass", 0.5),
    ):
        with pytest.raises(SystemExit):
            run(capsys, "ask", *asked, *wrong)


def test_decoding_options(capsys, model):
    ask = ("ask", "--model", model, "--image", IMAGE, "--query", "What?", "--max-new-tokens", 6, "--json")
    answers = {}
    for name, options in {
        "greedy": ("--temperature", 0),
        "likeliest only": ("--temperature", 1, "--top-p", 1e-9),
        "sampled": ("--temperature", 5, "--top-p", 1, "--seed", 0),
        "sampled again": ("--temperature", 5, "--top-p", 1, "--seed", 0),
        "beams": ("--temperature", 0, "--num-beams", 2),
        "system": ("--temperature", 0, "--system", "Answer in rhyme."),
    }.items():
        answers[name] = json.loads(run(capsys, *ask, *options)[1])["answer"]
    assert answers["greedy"] == answers["likeliest only"]
    assert answers["sampled"] == answers["sampled again"] != answers["greedy"]
    assert answers["system"] != answers["greedy"]


@pytest.mark.parametrize("keep", ["key_values", "features", "none"])
def test_chat(capsys, monkeypatch, model, video, keep):
    """Two questions about a video; the second answer equals asking with the whole conversation."""
    questions = iter(["What moves?\n", "And then?\n", "\n"])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(questions), raising=False)
    status, output, _ = run(capsys, "chat", "--model", model, "--video", video, "--keep", keep, *GREEDY)
    assert status == 0
    arguments = cli.build_parser().parse_args(["chat", "--model", model, "--video", video])
    loaded, processor = cli.load(arguments)
    options = {"do_sample": False, "max_new_tokens": 6}
    messages = cli.first_message(arguments, "What moves?")
    for question in ("And then?", None):
        inputs = cli.prepare(arguments, messages, processor)
        text, _ = cli.answer(loaded, processor, inputs, options, show=False)
        assert text in output
        output = output[output.index(text) + len(text) :]
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "missing.png"), "missing.png"),
        (("--video", "missing.mp4"), "missing.mp4"),
        (("--video", IMAGE.replace(".png", ".txt")), "no file here"),
    ],
)
def test_bad_input_is_one_line(capsys, model, arguments, message):
    status, output, error = run(capsys, "ask", "--model", model, "--query", "What?", *arguments)
    assert status == 2 and not output
    assert message in error and error.startswith("llava-mini: ") and error.count("\n") == 1


def test_help_shows_examples_and_the_command_is_installed():
    help_text = subprocess.run(
        [Path(sys.executable).parent / "llava-mini", "ask", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert 'llava-mini ask --model DIR --image cat.jpg --query "What is the cat doing?"' in help_text
    assert "--load-4bit" in help_text


@pytest.mark.parametrize("option", ["--load-8bit", "--load-4bit"])
def test_quantised(capsys, model, option):
    pytest.importorskip("bitsandbytes", reason="quantised loading needs the extra bitsandbytes")
    status, output, error = run(
        capsys,
        "ask",
        "--model",
        model,
        "--image",
        IMAGE,
        "--query",
        "What is this?",
        *GREEDY,
        option,
        "--device",
        "cpu",
    )
    assert status == 0 and output.strip(), error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", 2**64), "not from 0 to 2**64 - 1"),
        (("--seed", -1), "not from 0 to 2**64 - 1"),
        (("--seed", "x"), "--seed"),
        (("--device", "meta"), "meta can't be used"),
        (("--device", "nothing"), "nothing can't be used"),
        (("--device", "cuda:99"), "cuda:99 can't be used"),
        (("--temperature", -1), "not 0 or above"),
        (("--temperature", "inf"), "not 0 or above"),
        (("--temperature", "nan"), "not 0 or above"),
        (("--top-p", 0), "at most 1"),
        (("--top-p", 1.5), "at most 1"),
        (("--max-new-tokens", 0), "not above 0"),
        (("--num-beams", -2), "not above 0"),
        (("--num-frames", 0), "not above 0"),
        (("--fps", "nan"), "not above 0"),
        (("--fps", "inf"), "not above 0"),
        (("--system", "\udcff"), "no valid UTF-8"),
        (("--query", "\udcff\udcfe"), "no valid UTF-8"),
    ],
)
def test_arguments_that_mean_nothing(capsys, options, said):
    """Told before anything is loaded: there is no such checkpoint."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", "--model", "nowhere", "--query", "What?", *map(str, options)])
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and last.startswith("llava-mini ask: error: ")


@pytest.fixture
def damage(tmp_path):
    """A function that makes a checkpoint of which one file is replaced by `content`, or cut when there is none."""

    def make(name: str, content: str | None) -> str:
        folder = shutil.copytree(CHECKPOINT, tmp_path / "damaged")
        if content is None:
            (folder / name).write_bytes((CHECKPOINT / name).read_bytes()[:100_000])
        else:
            (folder / name).write_text(content)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", None, "are damaged"),
        ("chat_template.jinja", '{{ raise_exception("not like this") }}', "not like this"),
        ("chat_template.jinja", "{% if %}", "TemplateSyntaxError"),
        ("config.json", "{", "config.json"),
        ("tokenizer.json", "{", ""),
        ("processor_config.json", "[]", ""),
    ],
)
def test_damaged_checkpoints_are_one_line(capsys, damage, name, content, said):
    status, output, error = run(capsys, "ask", "--model", damage(name, content), "--query", "What?")
    assert (status, output) == (2, "") and said in error
    assert error.startswith("llava-mini: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [("./nowhere", "no directory"), ("/a/b/c/d", "no directory"), ("a b", "no directory"), (__file__, "is a file")],
)
def test_models_that_are_none(capsys, model, said):
    status, _, error = run(capsys, "ask", "--model", model, "--query", "What?")
    assert status == 2 and said in error and "Repo id" not in error and error.count("\n") == 1


def test_a_question_that_is_no_text_ends_the_chat_in_words(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What\udcff?\n"))
    status, _, error = run(capsys, "chat", "--model", CHECKPOINT, "--image", IMAGE)
    assert status == 2 and "no valid UTF-8" in error and error.count("\n") == 1


def test_typed_placeholders_do_not_end_a_chat(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is <image>?\nAnd <video>, <image>?\n\n"))
    status, output, _ = run(capsys, "chat", "--model", CHECKPOINT, "--image", IMAGE, *GREEDY)
    assert status == 0 and len(output.strip().splitlines()) == 2


def test_debug_shows_where(capsys):
    with pytest.raises(ValueError, match="no directory"):
        cli.main(["--debug", "ask", "--model", "./nowhere", "--query", "What?"])


def test_conversion_is_part_of_the_command(capsys, tmp_path):
    golden = Path(__file__).parent / "golden/standard"
    options = ("convert", golden / "original", tmp_path / "converted", "--verify", "--expected", golden)
    status, output, _ = run(capsys, *options)
    assert status == 0 and "largest difference" in output
    status, output, _ = run(capsys, "verify", tmp_path / "converted", "--expected", golden)
    assert status == 0 and "largest difference" in output
    status, _, error = run(capsys, "verify", tmp_path / "nowhere")
    assert status == 2 and "nowhere" in error
    status, output, _ = run(capsys, "push", tmp_path / "converted", "someone/tiny", "--prepare-only")
    assert status == 0 and (tmp_path / "converted" / "modeling_llava_mini.py").is_file()


@pytest.mark.slow
def test_an_installed_wheel_converts(tmp_path):
    """Nothing of the checkout but the checkpoint: the converter, its templates and the card's come with the wheel."""
    root = Path(__file__).parents[1]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, root],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {(built.stderr.strip().splitlines() or ['no answer'])[-1]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = (
        "import sys, llava_mini; from llava_mini.cli import main; "
        "assert 'installed' in llava_mini.__file__, llava_mini.__file__; sys.exit(main(sys.argv[1:]))"
    )
    for options in (
        ("convert", root / "tests/golden/standard/original", "out", "--verify"),
        ("push", "out", "someone/tiny", "--prepare-only"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "chat_template.jinja").is_file() and (tmp_path / "out" / "README.md").is_file()
