"""The local page of `ganpipe explore`, made with Gradio."""

import base64
import html
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np

from ganpipe.commands.explore import Explorer, write_zip
from ganpipe.commands.picks import Pick, file_names
from ganpipe.common.errors import UserError
from ganpipe.models.generator import check_request, png_bytes
from ganpipe.tracking.store import exempt_loopback

GRID_IMAGES, MAX_PICKS = 24, 24
HINT = "<p>None yet. Choose an image, move the sliders, and press Pick.</p>"
REACH = 6  # of a direction's slider to either side, in standard deviations
# Tells which of the images in an element was clicked.
CLICK = """element.addEventListener('click', e => {
  const images = [...element.querySelectorAll('button')], image = e.target.closest('button')
  if (image) trigger('select', {index: images.indexOf(image)})
})"""
CSS = """
.gradio-container {max-width: 1180px !important; width: 100%; margin: auto; padding: 0 12px !important}
.gradio-container {overflow: visible !important}
.gradio-container img {image-rendering: pixelated; border-radius: 5px; margin: 0; display: block}
.images {display: grid; grid-template-columns: repeat(auto-fill, 72px); gap: 5px}
.images button {padding: 0; cursor: pointer} .images button:hover {opacity: .75}
.images img {width: 100%; aspect-ratio: 1}
#grid .images {grid-template-columns: repeat(6, 1fr)}
#picture img {width: min(100%, 320px); aspect-ratio: 1; margin: auto}
#picture p {text-align: center; margin: 6px 0 0}
#side {background: var(--body-background-fill); z-index: 100; gap: 8px}
#sliders {gap: 8px} #sliders .block {padding: 4px 10px; overflow: hidden !important}
#sliders .form {display: grid; grid-template-columns: 1fr 1fr} #sliders .tabitem {padding: 0}
#sliders input[type=number] {width: 56px} #sliders input[type=range] {min-width: 0; width: 100%}
#sliders .form, #sliders .form > * {min-width: 0 !important}
#near img:first-child {outline: 3px solid var(--color-accent)}
#class {grid-column: 1 / -1} h4 {margin: 4px 0 !important}
@media (max-width: 640px) {
  #side {position: sticky; top: 0; padding: 6px 0} #picture img {width: 190px}
  #grid .images, .images {grid-template-columns: repeat(6, 1fr)}
}
"""


def explore(source: str | None, root: Path, device: str, port: int | None, browser: bool) -> None:
    """Show a generator on a page that only this machine can open, until Ctrl-C or SIGTERM.

    Raises UserError: Gradio is not installed, the generator is not found, or the port is taken.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
    except ImportError:
        raise UserError("the page needs Gradio; install it with: pip install 'ganpipe[explore]'") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, and removes the files
    code = 0
    with TemporaryDirectory(prefix="ganpipe-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        explorer = Explorer(source, root, device)
        spec = explorer.spec
        title = f"{source or 'stages/train'}: {spec.params.architecture}, {spec.resolution} px"
        page = build(explorer, Path(folder), title)
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        exempt_loopback()  # Gradio would ask a proxy for its own page
        options: dict[str, Any] = {"server_name": "127.0.0.1", "server_port": port, "share": False}
        options |= {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False, "run_history": False}
        try:
            _, address, _ = page.launch(quiet=True, prevent_thread_lock=True, **options)
        except OSError:
            raise UserError(f"--port: {port or '7860 to 7959'} is taken; give another port") from None
        try:
            print(address, flush=True)
            print("Ctrl-C stops the server.", file=sys.stderr)
            if browser:
                webbrowser.open(address)
            threading.Event().wait()
        except (KeyboardInterrupt, SystemExit) as end:
            code = getattr(end, "code", 0)
        page.close(verbose=False)
    os._exit(code)  # a thread that still compares images would crash the usual end of Python


class View:
    """Answers to what happens on the page.

    `number` is the place of the snapshot shown, from 1. A pick is a tuple of seed, class (empty: the seed's
    own), truncation and each direction's offset, so that the page can be set to it again.
    """

    def __init__(self, explorer: Explorer, folder: Path) -> None:
        self.explorer, self.folder = explorer, folder

    def picture(self, number: int, seed: int, class_name: str, truncation: float, *offsets: float) -> str:
        """Show one image, as fast as possible."""
        weights = self.explorer.weights[int(number) - 1]
        pick = self.explorer.pick(seed, truncation, offsets, class_name)
        image, classes = self.explorer.preview(pick, weights), pick.z[self.explorer.spec.params.nz :]
        moved = ", moved" if any(offsets) else ""
        if len(classes):
            moved += f", class {html.escape([*self.explorer.spec.classes][int(classes.argmax())])}"
        epoch = "" if weights.epoch is None else f", after epoch {weights.epoch}"
        return f"{_img(image)}<p>seed {seed}{moved}{epoch}</p>"

    def grid(
        self, number: int, first: str, class_name: str, truncation: float, step: int = 0
    ) -> tuple[str, int, str]:
        """Show the images of consecutive seeds, `step` grids after the seed `first`."""
        import gradio as gr

        try:
            seed = max(0, int(first) + step * GRID_IMAGES) if step else int(first)
            check_request(GRID_IMAGES, seed, truncation)
        except ValueError:
            raise gr.Error(f"found {first[:30]!r}, expected a whole number", print_exception=False) from None
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        picks = [self.explorer.pick(seed + i, truncation, (), class_name) for i in range(GRID_IMAGES)]
        images = self.explorer.images(picks, self.explorer.weights[int(number) - 1])
        return str(seed), seed, _buttons(images, picks)

    def picked(self, picks: list[Any], chosen: int, number: int) -> list[Any]:
        """Show the picks and a film strip of the way between them, and write the files to download."""
        import gradio as gr

        if not picks:
            return [HINT, "", *[gr.update(value=None, interactive=False)] * 2]
        made, weights = self._made(picks), self.explorer.weights[int(number) - 1]
        images = self.explorer.images(made, weights)
        film = _images(map(_img, self.explorer.film(made, weights))) if len(made) > 1 else ""
        folder = Path(mkdtemp(dir=self.folder))
        png, archive = folder / file_names(made)[chosen], folder / "picks.zip"
        png.write_bytes(png_bytes(images[chosen]))
        write_zip(archive, made, images, weights)
        downloads = [gr.update(value=str(path), interactive=True) for path in (png, archive)]
        return [_buttons(images, made), film, *downloads]

    def nearest(self, picks: list[Any], chosen: int, number: int) -> Iterator[str]:
        """Show the nearest training images of the chosen pick."""
        if not picks or self.explorer.data is None:
            yield f"<p>{self.explorer.no_data}</p>" if picks else ""
            return
        yield "<p>Comparing with the training images; the first time takes a while …</p>"
        pick, weights = self._made(picks)[chosen], self.explorer.weights[int(number) - 1]
        images = self.explorer.images([pick], weights)
        try:
            nearest, text = self.explorer.nearest(images)
        except UserError as error:
            yield f"<p>{html.escape(str(error))}</p>"
            return
        row = _images(map(_img, [*images, *nearest]))
        yield f"<h4>Pick {chosen + 1} and its nearest training images</h4>{row}<p>{text}</p>"

    def _made(self, picks: list[Any]) -> list[Pick]:
        pick = self.explorer.pick
        return [pick(seed, truncation, offsets, name) for seed, name, truncation, *offsets in picks]


def _img(image: np.ndarray) -> str:
    """Return the HTML of an image uint8 H×W×C in [0, 255]."""
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}'>"


def _images(elements: Iterable[str]) -> str:
    return f"<div class='images'>{''.join(elements)}</div>"


def _buttons(images: np.ndarray, picks: Iterable[Pick]) -> str:
    pairs = zip(images, picks, strict=True)
    return _images(f"<button title='seed {pick.seed}'>{_img(image)}</button>" for image, pick in pairs)


def layout(explorer: Explorer, title: str) -> SimpleNamespace:
    """Lay out the page inside a gradio.Blocks; return its components by name."""
    import gradio as gr

    c = SimpleNamespace(**{name: gr.State(0) for name in ("start", "seed", "chosen")}, picks=gr.State([]))
    small = {"size": "sm", "min_width": 60}
    gr.Markdown(f"### {title}")
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            c.grid = gr.HTML(elem_id="grid", js_on_load=CLICK)
            with gr.Row():
                c.back = gr.Button("◀", elem_id="back", **small)
                c.first = gr.Textbox("0", elem_id="first", show_label=False, container=False, min_width=90)
                c.on = gr.Button("▶", elem_id="on", **small)
        with gr.Column(scale=3, min_width=240, elem_id="side"):
            c.picture = gr.HTML(elem_id="picture")
            with gr.Row():
                c.take = gr.Button("Pick", elem_id="take", variant="primary", **small)
                c.reset = gr.Button("Reset", elem_id="reset", **small)
        with gr.Column(scale=4, min_width=280, elem_id="sliders"):
            names = [("each seed’s own", ""), *explorer.spec.classes]
            c.class_name = gr.Dropdown(
                names, value="", label="class", visible=len(names) > 1, elem_id="class", min_width=90
            )
            c.truncation = gr.Slider(0.1, 1, 1, step=0.05, label="truncation", buttons=[])
            last = len(explorer.weights)
            c.number = gr.Slider(
                1, max(2, last), last, step=1, label="snapshot", visible=last > 1, buttons=[]
            )
            c.offsets = []
            half = len(explorer.names) // 2
            for tab, part in (("Components", slice(half)), ("Elements of z", slice(half, None))):
                with gr.Tab(tab):
                    for name in explorer.names[part]:
                        c.offsets.append(gr.Slider(-REACH, REACH, 0, step=0.1, label=name, buttons=[]))
    gr.Markdown("#### Picks")
    c.picked = gr.HTML(HINT, elem_id="picks", js_on_load=CLICK)
    with gr.Row():
        c.remove = gr.Button("Remove", elem_id="remove", **small)
        c.png = gr.DownloadButton("PNG", elem_id="png", interactive=False, **small)
        c.zip = gr.DownloadButton("Zip of all", elem_id="zip", interactive=False, **small)
    with gr.Row():
        with gr.Column(scale=7, min_width=320):
            c.film = gr.HTML(elem_id="film")
        with gr.Column(scale=5, min_width=320):
            c.near = gr.HTML(elem_id="near")
    return c


def build(explorer: Explorer, folder: Path, title: str) -> Any:
    """Build the page, a gradio.Blocks; the files of its downloads go into `folder`."""
    import gradio as gr

    view = View(explorer, folder)
    with gr.Blocks(title="ganpipe explore", analytics_enabled=False) as page:
        c = layout(explorer, title)
        last = {"show_progress": "hidden", "trigger_mode": "always_last"}
        fast = {"queue": False, **last}
        sliders, still = [c.truncation, *c.offsets], [0] * len(c.offsets)

        def choose(start: int, event: gr.EventData) -> list[Any]:
            return [start + event.index, *still]

        def take(picks: list[Any], *pick: Any) -> tuple[list[Any], int]:
            if len(picks) >= MAX_PICKS:
                raise gr.Error(f"{MAX_PICKS} picks are the most; remove one", print_exception=False)
            return [*picks, pick], len(picks)

        def reopen(picks: list[Any], event: gr.EventData) -> list[Any]:
            return [event.index, *picks[event.index]]

        def remove(picks: list[Any], chosen: int) -> tuple[list[Any], int]:
            return picks[:chosen] + picks[chosen + 1 :], max(0, min(chosen, len(picks) - 2))

        pick = [c.seed, c.class_name, *sliders]
        state, results = [c.picks, c.chosen, c.number], [c.picked, c.film, c.png, c.zip]
        draw = {"fn": view.picture, "inputs": [c.number, *pick], "outputs": c.picture, **fast}
        wanted = [c.number, c.first, c.class_name, c.truncation]
        seeds = {"inputs": wanted, "outputs": [c.first, c.start, c.grid]}
        gr.on([s.input for s in (*sliders, c.number, c.class_name)], **draw)
        drawn_anew = [c.first.submit, c.class_name.input, c.truncation.release, c.number.release]
        gr.on([page.load, *drawn_anew], view.grid, **seeds)
        page.load(**draw)
        for button, step in ((c.back, -1), (c.on, 1)):
            button.click(partial(view.grid, step=step), **seeds)
        c.grid.select(choose, c.start, [c.seed, *c.offsets], queue=False).then(**draw)
        c.reset.click(lambda: [1, *still], None, sliders, queue=False).then(**draw)
        for event in (
            c.take.click(take, [c.picks, *pick], [c.picks, c.chosen]),
            c.remove.click(remove, [c.picks, c.chosen], [c.picks, c.chosen]),
            c.picked.select(reopen, c.picks, [c.chosen, *pick]).then(**draw),
            c.number.release(lambda: None),
        ):
            event.then(view.picked, state, results, **last).then(view.nearest, state, c.near, **last)
    return page
