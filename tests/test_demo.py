"""The demo's logic, without its page: what a conversation is, what is refused, what is kept and what is said of it."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mini import cli, demo
from llava_mini.demo import find_small_model, limits
from llava_mini.demo.answering import Answerer, Sampling
from llava_mini.demo.conversation import Asked, Media, read_history, read_media, to_messages
from llava_mini.demo.examples import CHECKPOINT_FOLDER, DRAWN, QUESTIONS, write_examples
from llava_mini.demo.limits import Limits, Refusal, upload_size
from llava_mini.demo.report import Figures, details, headline, show_flops
from llava_mini.demo.session import Session, Sessions, Subject


CHECKPOINT = Path(__file__).parents[1] / "examples/tiny/checkpoint"
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=16)
ANSWERS = {
    "guitar.png": "guitar",
    "elephant_and_pizza.png": "right",
    "shapes.png": "red",
    "night.png": "yes",
    "digit.png": "7",
    "clip.mp4": "right",
}


@pytest.fixture(scope="module")
def answerer():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    return Answerer(model, AutoProcessor.from_pretrained(CHECKPOINT), Limits())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    return {example.path.name: example for example in write_examples(folder, str(CHECKPOINT))}


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path / "views")


def ask(answerer, session, *files, question, turns=(), **options):
    async def run():
        asked = Asked(tuple(map(str, files)), turns, question, **options)
        return [output async for output in answerer.answer(session, asked, GREEDY)]

    return asyncio.run(run())


def user(text, *files):
    content = [{"type": "file", "file": {"path": path}} for path in files] + [{"type": "text", "text": text}]
    return {"role": "user", "content": content}


def assistant(text, title=None):
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": {"title": title}}


# ---- conversation


def test_history_gives_the_turns_about_the_last_pictures():
    history = [
        user("first?", "a.png"), assistant("one"), assistant("figures", "1 vision token"),
        user("second?", "b.png"), assistant("two"), assistant("figures", "1 vision token"),
        user("third?"), assistant("three"),
    ]  # fmt: skip
    asked = read_history({"text": " fourth? ", "files": []}, history, "Be brief.", True, Limits())
    assert asked == Asked(("b.png",), (("second?", "two"), ("third?", "three")), "fourth?", "Be brief.")
    alone = read_history({"text": "fourth?"}, history, "", False, Limits())
    assert alone == Asked(("b.png",), (), "fourth?")
    new = read_history({"text": "x", "files": [{"path": "c.png"}]}, history, "", True, Limits())
    assert new == Asked(("c.png",), (), "x", is_new=True)
    assert not read_history({"text": "x", "files": ["c.png"]}, [], "", True, Limits()).is_new


def test_a_refused_or_stopped_question_is_no_turn():
    history = [user("a?", "a.png"), assistant("A"), user("b?", "broken.png"), assistant("why", "Not answered")]
    asked = read_history({"text": "c?"}, history, "", True, Limits())
    assert asked == Asked(("a.png",), (("a?", "A"),), "c?")
    asked = read_history(
        {"text": "c?"}, [*history, user("stopped before its first token", "d.png")], "", True, Limits()
    )
    assert asked.files == ("a.png",) and len(asked.turns) == 1


def test_a_picture_and_its_question_in_two_messages():
    history = [{"role": "user", "content": [{"type": "file", "file": {"path": "a.png"}}]}, user("a?"), assistant("A")]
    assert read_history({"text": "b?"}, history, "", True, Limits()).turns == (("a?", "A"),)


@pytest.mark.parametrize(
    ("message", "system", "told"),
    [
        ({"text": "  ", "files": ["a.png"]}, "", "There is no question"),
        ({"text": "x" * 11}, "", "The question has 11 characters, and 10 are allowed"),
        ({"text": "x"}, "x" * 11, "The system message has 11 characters"),
        ({"text": "x", "files": ["a", "b", "c"]}, "", "These are 3 files, and a message may have 2"),
    ],
)
def test_messages_beyond_the_limits_are_refused(message, system, told):
    with pytest.raises(Refusal, match=told):
        read_history(message, [], system, True, Limits(max_characters=10, max_files=2))


def test_messages_for_the_processor():
    picture = Image.new("RGB", (2, 2))
    asked = Asked(("a", "b"), (("q", "a"),), "r", "s")
    messages = to_messages(asked, Media([picture], [b"clip"], ["video", "image"]))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == [
        {"type": "video", "video": b"clip"}, {"type": "image", "image": picture}, {"type": "text", "text": "q"}
    ]  # fmt: skip
    assert messages[3]["content"] == [{"type": "text", "text": "r"}]


def broken_files(folder: Path, clip: Path) -> dict[str, bytes]:
    png = folder / "whole.png"
    Image.effect_noise((64, 64), 50).save(png)
    return {
        "text.png": b"no picture",
        "empty.png": b"",
        "cut.png": png.read_bytes()[:600],
        "text.mp4": b"no clip",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "cut.mp4": clip.read_bytes()[:400],
    }


def test_broken_files_are_refused_without_a_path(tmp_path, files):
    for name, content in broken_files(tmp_path, files["clip.mp4"].path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal) as refusal:
            read_media((str(tmp_path / name),), Limits())
        assert str(refusal.value).startswith(f"File 1 ({name})"), name
        assert str(tmp_path) not in str(refusal.value) and "etc" not in str(refusal.value)
    with pytest.raises(Refusal, match="is gone"):
        read_media((str(tmp_path / "absent.png"),), Limits())


def test_pixels_and_frames_are_limited_before_anything_is_decoded(tmp_path, files, monkeypatch):
    monkeypatch.setattr("llava_mini.demo.conversation.open_image", lambda *_: pytest.fail("decoded"))
    shapes, clip = str(files["shapes.png"].path), str(files["clip.mp4"].path)
    with pytest.raises(Refusal, match="336x336 are more pixels than the 1000 allowed"):
        read_media((shapes,), Limits(max_pixels=1000))
    with pytest.raises(Refusal, match="clips may have 31 frames"):
        read_media((clip,), Limits(max_clip_frames=31))
    assert read_media((clip,), Limits(max_clip_frames=32)).kinds == ["video"]


# ---- answers and what is kept


def test_the_examples_are_answered_rightly(answerer, files, tmp_path):
    assert list(ANSWERS) == list(files) and {name for name, *_ in DRAWN} < set(ANSWERS)
    for name, example in files.items():
        text, figures = ask(answerer, Session(tmp_path / name), example.path, question=example.question)[-1]
        assert text == ANSWERS[name], name
        assert figures.num_images == figures.vision_tokens == (4 if name == "clip.mp4" else 1)


def test_a_checkpoint_brings_its_own_examples(tmp_path):
    brought = tmp_path / "model" / CHECKPOINT_FOLDER
    brought.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(brought / "cat.png")
    (brought / QUESTIONS).write_text(json.dumps({"cat.png": "What is this?"}))
    examples = write_examples(tmp_path / "out", str(tmp_path / "model"))
    assert examples[0].question == "What is this?" and examples[0].path == tmp_path / "out" / "cat.png"
    assert examples[0].path.is_file() and len(examples) == 1 + len(DRAWN)
    for name in ("absent.png", "../config.json"):
        (brought / QUESTIONS).write_text(json.dumps({name: "?"}))
        with pytest.raises(ValueError, match="names"):
            write_examples(tmp_path / "out", str(tmp_path / "model"))


def test_a_follow_up_runs_new_text_alone_and_answers_as_a_fresh_run(answerer, session, files, tmp_path, monkeypatch):
    picture, first = files["shapes.png"].path, "What colour is the circle?"
    text, figures = ask(answerer, session, picture, question=first)[-1]
    assert not figures.is_reused and figures.run_tokens == figures.prompt_tokens and figures.kept_bytes > 1000
    assert figures.flops == figures.fresh_flops
    fresh = ask(answerer, Session(tmp_path / "other"), picture, question="Which shape is blue?", turns=((first, text),))
    monkeypatch.setattr(answerer.model, "encode_visuals", lambda **_: pytest.fail("encoded again"))
    again, figures = ask(answerer, session, picture, question="Which shape is blue?", turns=((first, text),))[-1]
    assert again == fresh[-1][0]
    assert figures.is_reused and figures.run_tokens < figures.prompt_tokens
    assert figures.flops < figures.fresh_flops == fresh[-1][1].flops
    assert 0 < figures.first_token < 5 and figures.times[0] > 0
    assert "from what was kept" in headline(figures) and "from what was kept" not in headline(fresh[-1][1])
    # Another system message: all text runs, the picture is kept all the same.
    _, figures = ask(answerer, session, picture, question=first, system="Be brief.")[-1]
    assert figures.is_reused and figures.run_tokens == figures.prompt_tokens


def test_other_pictures_are_not_answered_from_what_was_kept(answerer, session, files):
    ask(answerer, session, files["shapes.png"].path, question="What colour is the circle?")
    text, figures = ask(answerer, session, files["digit.png"].path, question="Which digit is this?", is_new=True)[-1]
    assert text == "7" and not figures.is_reused and "New pictures" in details(figures)


def test_a_clip_gives_as_many_frames_as_are_allowed(answerer, session, files):
    few = Answerer(answerer.model, answerer.processor, Limits(max_frames=2))
    _, figures = ask(few, session, files["clip.mp4"].path, question="What shape is it?")[-1]
    assert figures.num_images == 2 and session.subject.asked_frames == [2]
    assert len(asyncio.run(few.look(session, "What shape is it?"))) == 2


def test_answers_come_in_pieces_and_end_when_nobody_listens(converted, session, files):
    """On a model that goes on until it is stopped."""
    folder = converted("standard")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    endless = Answerer(model, AutoProcessor.from_pretrained(folder), Limits())
    model.generation_config.min_new_tokens = 400
    steps = []
    model.lm_head.register_forward_hook(lambda *_: steps.append(1))

    async def listen_to_some():
        asked = Asked((str(files["shapes.png"].path),), (), "What?")
        answers = endless.answer(session, asked, Sampling(0.0, 1.0, 400))
        texts = [(await anext(answers))[0] for _ in range(3)]
        await answers.aclose()
        # The loop goes on, as the server's does, until the model's thread is free.
        await asyncio.get_running_loop().run_in_executor(endless.runner, lambda: None)
        return texts

    texts = asyncio.run(listen_to_some())
    assert len(set(texts)) == 3 and all(texts[2].startswith(text) for text in texts)
    assert 3 <= len(steps) < 200
    # What is kept of a stopped answer serves the next question.
    assert session.subject.context.turn is not None


def test_sampling_is_as_the_visitor_says(answerer, session, files, monkeypatch):
    seen = []
    generate = answerer.model.generate
    monkeypatch.setattr(answerer.model, "generate", lambda **k: seen.append(k["generation_config"]) or generate(**k))

    async def run(sampling):
        asked = Asked((str(files["shapes.png"].path),), (), "What colour is the circle?")
        return [output async for output in answerer.answer(session, asked, sampling)]

    asyncio.run(run(Sampling(0.7, 0.9, 5)))
    assert (seen[0].do_sample, seen[0].temperature, seen[0].top_p, seen[0].max_new_tokens) == (True, 0.7, 0.9, 5)
    asyncio.run(run(Sampling(0.0, 0.9, 10_000)))
    assert not seen[1].do_sample and seen[1].max_new_tokens <= Limits().max_new_tokens
    prompt = session.subject.context.turn.input_ids.shape[1]
    assert prompt + seen[1].max_new_tokens <= answerer.num_positions


def test_too_long_a_conversation_is_refused(answerer, session, files):
    with pytest.raises(Refusal, match="and the model has 512 positions"):
        ask(answerer, session, files["shapes.png"].path, question="circle " * 600)


def test_looks_are_those_of_the_question(answerer, session, files):
    both = (files["shapes.png"].path, files["clip.mp4"].path)
    ask(answerer, session, *both, question="What colour is the circle?")
    looks = asyncio.run(answerer.look(session, "What colour is the circle?"))
    assert len(looks) == 5 and looks is session.looks
    assert looks[0].picture.size == (336, 336) and "circle" in [word.strip() for word in looks[0].words]


def test_a_model_that_cannot_run_is_told_at_the_start(answerer, monkeypatch):
    answerer.warm_up()

    def fail(**_):
        raise RuntimeError("no such shape")

    monkeypatch.setattr(answerer.model, "generate", fail)
    with pytest.raises(RuntimeError, match="no such shape"):
        answerer.warm_up()


# ---- sessions


@pytest.fixture
def sessions(tmp_path):
    (tmp_path / "uploads").mkdir()
    return Sessions(tmp_path / "views", tmp_path / "uploads", Limits(max_visitors=2))


def upload(sessions, visitor, name, content="x"):
    path = sessions.uploads / content / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    sessions.get(visitor).files.add(str(path))
    return path


def test_visitors_have_nothing_in_common_and_leave_nothing(sessions, tmp_path):
    outside = tmp_path / "keep.txt"
    outside.write_text("")
    own, common, renamed = (upload(sessions, "a", name, text) for name, text in (("a", "1"), ("b", "2"), ("c", "3")))
    sessions.get("a").files.add(str(outside))
    upload(sessions, "b", "b", "2")
    other_name = upload(sessions, "b", "d", "3")
    shown = [Path(sessions.get(name).save_picture(Image.new("RGB", (4, 4)))) for name in "ab"]
    assert sessions.get("a") is not sessions.get("b") and shown[0].parent != shown[1].parent
    assert len(shown[0].parent.name) >= 20
    sessions.close("a")
    assert not own.exists() and not own.parent.exists() and not renamed.exists() and not shown[0].parent.exists()
    assert common.exists() and other_name.exists() and outside.exists() and shown[1].exists()
    sessions.close("b")
    assert not any(sessions.uploads.iterdir()) and not common.exists()
    sessions.close("never seen")


def test_whoever_was_silent_longest_makes_room(sessions):
    path = upload(sessions, "a", "a")
    sessions.get("b")
    sessions.get("a")
    sessions.get("c")
    assert set(sessions.sessions) == {"a", "c"} and path.exists()
    sessions.get("b")
    assert set(sessions.sessions) == {"c", "b"} and not path.exists()


def test_contexts_are_dropped_beyond_the_limit(answerer, files, tmp_path):
    sessions = Sessions(tmp_path, tmp_path, Limits(max_kept_bytes=1))
    for visitor in "ab":
        ask(answerer, sessions.get(visitor), files["shapes.png"].path, question="What colour is the circle?")
    sessions.make_room()
    assert sessions.get("a").subject.context is None and sessions.get("b").subject.context is not None
    text, figures = ask(
        answerer, sessions.get("a"), files["shapes.png"].path, question="What colour is the background?"
    )[-1]
    assert text == "white" and not figures.is_reused


def test_forgetting(session, tmp_path):
    session.save_picture(Image.new("RGB", (4, 4)))
    session.subject = Subject((), Media([], [], []))
    session.forget()
    assert session.subject is None and not session.folder.exists()


# ---- figures


def test_figures():
    first = Figures(1, 1, 576, 44, 44, 1_790_000_000_000, 1_790_000_000_000, 8_620_000_000_000, 0.081, 3 * 2**20)
    assert headline(first) == (
        "1 vision token (LLaVA-1.5: 576) · 1.79 TFLOPs (LLaVA-1.5: 8.62 TFLOPs) · first token after 81 ms"
    )
    assert "| **1** | 576 |" in details(first) and "3.00 MiB" in details(first) and "costs more" not in details(first)
    later = Figures(3, 3, 1728, 90, 12, 10**11, 2 * 10**12, 9 * 10**12, 0.01, is_reused=True, times=(5, 0.25))
    assert headline(later).startswith("3 vision tokens") and headline(later).endswith("from what was kept")
    for words in ("prompt's 90 tokens 12 ran", "| with nothing kept | 2 TFLOPs | 9 TFLOPs |", "5 tokens of answer in"):
        assert words in details(later)
    assert [show_flops(n) for n in (999, 1_234_000, 25_690 * 10**9)] == ["999 FLOPs", "1.23 MFLOPs", "25.7 TFLOPs"]
    small = Figures(1, 1, 36, 14, 14, 124, 124, 101, 0.01)
    assert "pre-fusion costs more than it saves; at 7B it is 1.79 against 8.62 TFLOPs" in details(small)


# ---- the command


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'llava-mini-hf[demo]'" in capsys.readouterr().err


def test_the_small_model_is_found_or_asked_for(capsys, monkeypatch, tmp_path):
    assert find_small_model() == str(CHECKPOINT)
    monkeypatch.setattr(demo, "IN_CHECKOUT", tmp_path)
    assert find_small_model() is None or "small-model" in find_small_model()
    monkeypatch.setattr("llava_mini.cli.check_gradio", lambda: None)
    monkeypatch.setattr("llava_mini.cli.find_small_model", lambda: None)
    assert cli.main(["demo"]) == 2
    assert "--model DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--port", "0"), ("--port", "70000"), ("--max-upload-size", "much"), ("--queue-size", "0"),
                ("--load-8bit", "--load-4bit")]
)  # fmt: skip
def test_options_that_make_no_sense(options, capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", *options])


def test_sizes():
    assert [upload_size(text) for text in ("500kb", "32 MB", "1gb")] == ["500kb", "32 mb", "1gb"]
    for text in ("0mb", "-1mb", "1.5mb", "12", "1tb; rm"):
        with pytest.raises(ValueError, match="is no size"):
            upload_size(text)
    assert upload_size(limits.Limits().max_upload_size) == limits.Limits().max_upload_size


def test_the_command_line_needs_nothing_of_the_demo():
    """Neither gradio nor the server's packages, and the page's modules without gradio too."""
    code = (
        "import sys; sys.modules['gradio'] = None; import llava_mini.cli\n"
        "assert not {'httpx', 'typer', 'llava_mini.demo.app'} & {m for m in sys.modules if m != 'typer'}\n"
        "import llava_mini.demo.app"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_wheel_brings_the_small_model(tmp_path):
    """As an installed package has it: found among the distribution's files."""
    site = tmp_path / "site"
    model = tmp_path / "share" / demo.IN_WHEEL
    shutil.copytree(CHECKPOINT, model)
    package = site / "llava_mini_hf-9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: llava-mini-hf\nVersion: 9\n")
    (package / "RECORD").write_text(f"../share/{demo.IN_WHEEL}/config.json,,\n")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import llava_mini.demo as d; from pathlib import Path\n"
        f"d.IN_CHECKOUT = Path('absent'); assert d.find_small_model() == {str(model.resolve())!r}, d.find_small_model()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
