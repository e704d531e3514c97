# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The page: what is where, and what happens on a click. Needs gradio, which is imported where it is used."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import PIL.Image
from transformers.utils import logging

from llava_mini.demo.answering import Answerer, Sampling
from llava_mini.demo.conversation import read_history
from llava_mini.demo.examples import Example
from llava_mini.demo.limits import Refusal
from llava_mini.demo.report import Figures, details, headline
from llava_mini.demo.session import Session, Sessions


if TYPE_CHECKING:
    import gradio as gr


logger = logging.get_logger(__name__)

TITLE = "LLaVA-Mini"
REFUSED, FAILED = "Not answered", "The model failed; the log of the server says why. Try again, or clear the chat."
PLACEHOLDER = (
    "### Ask about a picture or a clip\nTake an example on the left, or add your own, write a question and press Enter."
)
# What the slider shows beside the picture: the vision tokens, all words, or one word by its number.
TOKENS, WORDS = "tokens", "words"
# Seconds: how often gradio looks for old files, and how old the files of a page that was never closed may get.
CLEANING, MAX_AGE = 60, 3600
TOP_P_STEP, TEMPERATURE_STEP, MAX_TEMPERATURE = 0.05, 0.1, 2.0
CSS = """
.gradio-container { max-width: 1360px !important; margin: 0 auto !important; }
#head h1 { margin: 0 0 .1em; font-size: 1.7em; }
#head p { margin: 0; opacity: .85; }
#chat table { font-size: .9em; margin: .3em 0; }
#chat button[aria-label="Share"] { display: none; }
#chat .message img, #chat .message video { max-height: 170px; width: auto; }
#pictures .thumbnail-item { aspect-ratio: auto; height: 170px; }
#pictures .thumbnail-item img, #pictures .thumbnail-item video { object-fit: contain; }
#examples .gallery { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
#examples .gallery-item { width: 100%; font-size: .85em; text-align: left; }
#examples .gallery-item img, #examples .gallery-item video { max-height: 64px; max-width: 64px; }
"""


class Page:
    """
    Args:
        answerer (`Answerer`).
        sessions (`Sessions`).
        examples (`list[Example]`).
        name (`str`): what the model is called on the page; no path.
        remembers (`bool`): whether questions come with those before them, unless the visitor says otherwise.
    """

    def __init__(self, answerer: Answerer, sessions: Sessions, examples: list[Example], name: str, remembers: bool):
        self.answerer, self.sessions, self.examples, self.name = answerer, sessions, examples, name
        self.remembers = remembers
        self.limits = answerer.limits

    def build(self) -> "gr.Blocks":
        """The page with its events."""
        import gradio as gr

        gr.set_static_paths([self.sessions.folder, *{example.path.parent for example in self.examples}])
        with gr.Blocks(
            title=f"{TITLE}: {self.name}", analytics_enabled=False, delete_cache=(CLEANING, MAX_AGE), fill_width=True
        ) as page:
            gr.Markdown(self._introduction(), elem_id="head")
            with gr.Row():
                left = gr.Column(scale=2, min_width=320)
                right = gr.Column(scale=3, min_width=420)
            with left:
                pictures = gr.Gallery(
                    label="Pictures, or a clip", file_types=["image", "video"], interactive=True, height=230,
                    object_fit="contain", buttons=[], elem_id="pictures",
                )  # fmt: skip
                examples_place = gr.Column()
                with gr.Row():
                    which = gr.Dropdown([], label="Picture or frame", visible=False, elem_id="which")
                    by = gr.Dropdown([], label="Looked at by", visible=False, elem_id="by")
                seen = gr.ImageSlider(
                    label="What was looked at: drag the line", interactive=False, buttons=["fullscreen"],
                    max_height=340, elem_id="seen",
                )  # fmt: skip
            with right:
                chat = self._build_chat([pictures, seen, which, by])
            with examples_place:
                gr.Examples(
                    [[{"text": example.question, "files": [str(example.path)]}] for example in self.examples],
                    [chat.textbox], [pictures], lambda message: message["files"], run_on_click=True,
                    cache_examples=False, label="Examples: take one, then press Enter", elem_id="examples",
                    api_visibility="private",
                )  # fmt: skip
            self._connect(page, chat, pictures, seen, which, by)
        # Without `api_open` nobody can go past the queue.
        return page.queue(max_size=self.limits.queue_size, api_open=False, default_concurrency_limit=4)

    def _introduction(self) -> str:
        tokens, llava = self.answerer.costs.mini_tokens, self.answerer.costs.llava_tokens
        return (
            f"# {TITLE}\nAsk about pictures and clips: the language model sees **{tokens}** vision "
            f"token{'s' if tokens > 1 else ''} a picture, where LLaVA-1.5 with the same vision tower has **{llava}**. "
            f"Model: {self.name}."
        )

    def _build_chat(self, outputs: list["gr.Component"]) -> "gr.ChatInterface":
        import gradio as gr

        config = self.answerer.model.generation_config
        longest = min(self.limits.max_new_tokens, self.answerer.num_positions)
        temperature = (config.temperature or 1.0) if config.do_sample else 0.0
        settings = [
            gr.Slider(0, MAX_TEMPERATURE, temperature, step=TEMPERATURE_STEP, label="Temperature",
                      info="0 takes the likeliest token.", render=False),
            gr.Slider(TOP_P_STEP, 1, config.top_p or 1.0, step=TOP_P_STEP, label="Top-p",
                      info="With a temperature: sample from the likeliest tokens of this total probability.",
                      render=False),
            gr.Slider(1, longest, longest, step=1, label="Length", info="Tokens of an answer at most.", render=False),
            gr.Textbox("", label="System message", info="Empty: the checkpoint's own.", max_lines=4,
                       max_length=self.limits.max_characters, render=False),
            gr.Checkbox(self.remembers, label="Remember the conversation", render=False,
                        info="Off: each question is asked by itself; the pictures are kept all the same."),
        ]  # fmt: skip
        return gr.ChatInterface(
            self._make_answering(),
            multimodal=True,
            chatbot=gr.Chatbot(
                label="Chat", height=620, buttons=["copy"], placeholder=PLACEHOLDER, elem_id="chat", scale=1,
                latex_delimiters=[], allow_tags=False, allow_file_downloads=False,
            ),
            textbox=gr.MultimodalTextbox(
                file_types=["image", "video"], file_count="multiple", placeholder="Your question", stop_btn=True,
                max_plain_text_length=self.limits.max_characters, elem_id="question",
                html_attributes=gr.InputHTMLAttributes(autocorrect="off"),
            ),
            additional_inputs=settings,
            additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
            additional_outputs=outputs,
            concurrency_limit=1,
            analytics_enabled=False,
            flagging_mode="never",
            fill_height=False,
            api_name="chat",
        )  # fmt: skip

    def _connect(self, page, chat, pictures, seen, which, by):
        """Events beside the chat's own."""
        import gradio as gr

        def attach(files: list[tuple[str, str | None]] | None, message: dict | None, request: gr.Request):
            paths = [path for path, _ in files or []]
            self.sessions.get(request.session_hash).files.update(paths)
            return {"text": (message or {}).get("text", ""), "files": paths}

        def show(picture: int | None, looked_by: str | None, request: gr.Request):
            return self._show(self.sessions.get(request.session_hash), picture or 0, looked_by or TOKENS)

        def forget(request: gr.Request):
            self.sessions.get(request.session_hash).forget()
            return None, None, gr.update(visible=False), gr.update(visible=False)

        def close(request: gr.Request):
            self.sessions.close(request.session_hash)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on([pictures.upload, pictures.delete], attach, [pictures, chat.textbox], chat.textbox, **private)
        gr.on([which.input, by.input], show, [which, by], seen, **private)
        chat.chatbot.clear(forget, None, [pictures, seen, which, by], **private)
        page.unload(close)

    def _make_answering(self):
        """The function that gradio calls; it finds out by the annotations what to pass."""
        import gradio as gr

        async def answer(
            message: dict, history: list, temperature: float, top_p: float, length: int, system: str,
            remember: bool, request: gr.Request,
        ):  # fmt: skip
            """Answers a question about pictures and clips."""
            sampling = Sampling(float(temperature), float(top_p), int(length))
            session = self.sessions.get(request.session_hash)
            async for output in self._answer(session, message, history, sampling, system or "", remember):
                yield output

        return answer

    async def _answer(
        self, session: Session, message: dict, history: list, sampling: Sampling, system: str, remember: bool
    ) -> AsyncIterator[tuple]:
        """Messages for the chat, pictures of the conversation, and what was looked at."""
        import gradio as gr

        skipped = [gr.skip()] * 4
        try:
            session.files.update(map(str, message.get("files") or ()))
            asked = read_history(message, history, system, remember, self.limits)
            messages = []
            async for text, figures in self.answerer.answer(session, asked, sampling):
                messages = _to_chat(text, figures)
                yield messages, *skipped
            self.sessions.make_room()
            looks = await self.answerer.look(session, asked.question)
            yield messages, list(asked.files) or None, *self._show_first(session, len(looks))
        except Refusal as refusal:
            yield [{"content": str(refusal), "metadata": {"title": REFUSED}}], *skipped
        except Exception:
            logger.exception("A question could not be answered.")
            yield [{"content": FAILED, "metadata": {"title": REFUSED}}], *skipped

    def _show_first(self, session: Session, num_looks: int) -> list:
        """The slider with the first picture's view by the vision tokens, and what else can be chosen."""
        import gradio as gr

        if not num_looks:
            return [None, gr.update(visible=False), gr.update(visible=False)]
        numbers = [(f"{number + 1} of {num_looks}", number) for number in range(num_looks)]
        one = self.answerer.costs.mini_tokens == 1
        by = [("the vision token" if one else "the vision tokens, mean", TOKENS)]
        words = session.looks[0].words
        if words:
            by.append(("all words of the question", WORDS))
        by += [(f"“{word.strip() or word}”", str(number)) for number, word in enumerate(words)]
        return [
            self._show(session, 0, TOKENS),
            gr.update(choices=numbers, value=0, visible=num_looks > 1),
            gr.update(choices=by, value=TOKENS, visible=True),
        ]

    def _show(self, session: Session, picture: int, looked_by: str) -> tuple[str, str] | None:
        """Files of a picture and of the same with what was looked at."""
        if not 0 <= picture < len(session.looks):
            return None
        look = session.looks[picture]
        if looked_by == TOKENS:
            overlay = look.token_overlay()
        elif looked_by == WORDS:
            overlay = look.word_overlay()
        elif looked_by.isdecimal() and int(looked_by) < len(look.words):
            overlay = look.word_overlay(int(looked_by))
        else:
            return None
        plain = look.picture.resize(overlay.size, PIL.Image.Resampling.LANCZOS)
        return session.save_picture(plain), session.save_picture(overlay)


def _to_chat(text: str, figures: Figures | None) -> list[dict[str, Any]]:
    """An answer and, in a message with a title, its figures."""
    messages: list[dict[str, Any]] = [{"content": text}]
    if figures is not None:
        messages.append({"content": details(figures), "metadata": {"title": headline(figures), "status": "done"}})
    return messages


def launch(page: "gr.Blocks", host: str, port: int | None, share: bool, max_upload_size: str, **own):
    """Serves the page with nothing of gradio's that it doesn't need. `own`: for gradio's `launch`."""
    import gradio as gr

    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=max_upload_size,
        allowed_paths=[],
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=["gradio"],
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        **own,
    )
