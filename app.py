"""A page to drop a picture on: its enlargement beside it, a slider between the two, and the blend of faithful and sharp, live.

    python app.py
    python app.py --host 0.0.0.0 --port 8000 --max-megapixels 4

It needs `pip install -r requirements-app.txt`, and opens http://127.0.0.1:7860. The file it gives is that of test.py with the
same --weights, --blend and --format. Pictures stay on this computer, and are deleted when their page is closed. From Python:

    from gradio_client import Client, handle_file
    client = Client("http://127.0.0.1:7860")
    print(client.predict(handle_file("photo.jpg"), "clean", 1, "PNG", api_name="/upscale"))
"""

from pathlib import Path

from utils import ArgumentParser, add_device_arguments, number, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other computers reach the page")
    add("--port", type=number(int, 1, 65535), help="(default: the first from 7860 on that is free)")
    add("--share", action="store_true", help="also make a public address, by a server of Gradio's makers")
    add("--max-megapixels", type=number(float, 0.001), default=16, help="of a picture that is taken, all frames together")
    add("--no-browser", action="store_true", help="do not open the page in a browser")
    add_device_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":  # before the imports that take seconds, so that --help and a bad flag answer at once
    args = parse_arguments()

import contextlib
import functools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

from PIL import Image

from devices import give_back_memory, is_out_of_memory, pick_device
from inference import upscale_area
from pictures.comparison import place_of_detail
from pictures.folders import is_video, path_of_result
from pictures.formats import ANIMATED_INPUTS, FORMATS, read_picture, without_colour
from pictures.opening import open_image
from pictures.pixels import enlarge
from pictures.viewer import CLOSE_UP, address, bicubic_area, close_ups, duration, facts, make_examples, on_white, read_shown
from pictures.viewer import reduced, rgb_profile, slider, without_folders
from upscaling import CHECKPOINTS, PAIRS, network_chooser, upscale_picture
from utils import UserError, read_json
from weights import load_checkpoint

HERE = Path(__file__).parent
WEIGHTS_INFO = "clean: for lossless files; photo: for JPEG and its like; auto: by the file"
EMPTY = "<p>The enlargement will be here, with a slider between it and the picture.</p>"
NO_PARTNER = " (not blended: what it was trained from is not here)"
PNG, AS_INPUT = "PNG", "as the input"
LOSSY_INPUTS = {"JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "AVIF": "avif"}  # of which test.py makes PNG, unless asked
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600  # seconds
BYTES_PER_PIXEL = 16  # of a file at most; 16 bits and four channels take 8


class Stopped(Exception):
    """Raised between two tiles when nobody wants the result any more."""


@dataclass
class Visit:
    """What is kept of one open page."""

    folder: Path  # of its result
    uploads: set = field(default_factory=set)
    wanted: tuple = ()  # picture and settings as chosen last, () if none: what is computed for others stops
    shown: tuple | None = None  # the picture that is enlarged, and the (top, left) of the close-up in it
    made: tuple = ((), 0, ())  # the last result: for what, when, and what `upscale` returned
    closed: bool = False
    last: float = 0  # when it was heard of last


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def weights_there():
    """The weights to choose from: {name on the page: (what `network_chooser` takes, the file to blend with or None)}."""
    whole = [name for name, pair in PAIRS.items() if all(path.is_file() for path in pair)]
    found = {name: (name, None) for name in (["auto"] if len(whole) == len(PAIRS) else []) + whole}
    for best in sorted(CHECKPOINTS.glob("*/best.pth")):
        name = best.parent.name
        try:
            config = load_checkpoint(best)["config"]
            found[f"{name} (x{config['scale']})"] = str(best), stage_1_of(name, config)
        except (UserError, KeyError, TypeError) as error:
            print(f"{best}: left out ({error})", file=sys.stderr)
    return found


def stage_1_of(name, config):
    """The weights that a run of stage 2 was started from, to blend with: None if they are gone, or of another network."""
    options = CHECKPOINTS.parent / "results" / name / "config.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError, UserError):
        path = CHECKPOINTS.parent / read_json(options)["init"]
        theirs = load_checkpoint(path)["config"]
        if config["arch"] == "srgan" and theirs | {"arch": ""} == config | {"arch": ""}:
            return str(path)
    return None


@functools.lru_cache(maxsize=8)
def kept_chooser(weights, partner, blend, device, precision, changed):
    """A `network_chooser`, kept; `changed` are the times of the files, which a run may replace."""
    return network_chooser(weights, device, precision, blend, partner)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


kept_picture = functools.lru_cache(maxsize=1)(read_shown)  # for close-ups; by a path that holds the hash of the content


def check_file(path, megapixels):
    """Pillow's name for the format of a file, None if it has none. Raises UserError for what the page does not take.

    That is a video, and a picture that is too large, which is found out before its pixels are decoded.
    """
    if is_video(path):
        raise UserError("it is a video, which python test.py enlarges")
    try:
        with open(path, "rb") as file, open_image(file) as image:
            kind, (width, height) = image.format, image.size
            frames = getattr(image, "n_frames", 1) if kind in ANIMATED_INPUTS else 1
    except Exception:  # read_picture will tell what is wrong with it
        return None
    if width * height * frames > megapixels * 1e6:
        size = f"{width}x{height} pixels" + f" in {frames} frames" * (frames > 1)
        raise UserError(f"it has {size}, and this page takes {megapixels:g} megapixels; python test.py takes any size")
    return kind


# ---------------------------------------------------------------------------------------------------------------------
# What happens on the page
# ---------------------------------------------------------------------------------------------------------------------


class Page:
    """The visits, each with a folder of its own in `folder`, and one computation at a time."""

    def __init__(self, folder, device, precision="auto", megapixels=16):
        self.folder, self.device, self.precision, self.megapixels = folder, device, precision, megapixels
        self.visits, self.left, self.computing, self.weights = {}, set(), threading.Lock(), weights_there()
        self.kept, self.computed = set(), 0.0  # files of the page itself, and when the last computation ended
        folder.mkdir()
        self.examples = make_examples(folder.with_name("examples"))

    def visit(self, key):
        """The Visit of a session of Gradio, which is made when it is first heard of."""
        if key not in self.visits:
            folder = self.folder / secrets.token_hex(16)
            folder.mkdir()
            self.visits[key] = Visit(folder)
        self.visits[key].last = time.time()
        return self.visits[key]

    def keep_what_is_there(self):
        """Take the files in the folder for the page's own: Gradio has put the icons of the examples there."""
        self.kept = set(self.folder.glob("*/*"))

    def sweep(self):
        """Delete what was left behind: visits that nobody has used for a day, and uploads that no visit knows of.

        A closed page's visits go after a minute: an event that was still under way has made them anew. An upload is unknown
        when it broke off, when its page was closed before it told of it, and while a program waits for its turn to compute.
        """
        for key, visit in list(self.visits.items()):
            if time.time() - visit.last > (MINUTE if key in self.left else DAY):
                self.leave(key)
        busy = self.computing.locked() or time.time() - self.computed < MINUTE
        for path in (*self.folder.glob("tmp*"), *self.folder.glob("*/*")):  # results lie deeper
            with contextlib.suppress(FileNotFoundError):
                limit = HOUR if busy and path.parent != self.folder else MINUTE
                if path.is_file() and time.time() - path.stat().st_mtime > limit:
                    self.drop(path)

    def leave(self, key):
        """Delete what a visitor brought and got."""
        self.left.add(key)
        visit = self.visits.pop(key, None)
        if visit:
            visit.closed, visit.wanted = True, ()  # what is being computed stops, and deletes what it still writes
            self.delete(visit)

    def delete(self, visit):
        self.drop_uploads(visit)
        shutil.rmtree(visit.folder, ignore_errors=True)

    def drop_uploads(self, visit, but=None):
        """Delete the pictures that a visitor brought."""
        dropped, visit.uploads = visit.uploads - {but}, visit.uploads & {but}
        for path in dropped:
            self.drop(path)

    def drop(self, path):
        """Delete a file unless a visit needs it, or the page; two visitors who bring the same picture have the same file."""
        if path not in self.kept.union(*(visit.uploads for visit in list(self.visits.values()))):
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                with contextlib.suppress(OSError):  # the same picture by another name is in it
                    path.parent.rmdir()

    def choose(self, visit, upload, *settings):
        """Note what a visitor wants now: what is being computed for that visitor with other settings stops."""
        visit.wanted = (upload, *settings)
        path = upload and Path(upload)
        if visit.shown and visit.shown[0] != path:
            visit.shown = None
        self.drop_uploads(visit, path)
        if path:
            visit.uploads.add(path)

    def network(self, weights, blend, lossy):
        """The network for a file that was stored with loss or not, and its label on the page."""
        if weights not in self.weights:
            raise UserError(f"no weights are called {weights}; there are: {', '.join(self.weights)}")
        source, partner = self.weights[weights]
        ours = source == "auto" or source in PAIRS
        unblended = blend < 1 and not (ours or partner)
        blend = blend if blend < 1 and not unblended else None
        changed = () if ours else tuple(os.stat(file).st_mtime_ns for file in (source, partner) if file)
        choose = kept_chooser(source, None if blend is None else partner, blend, self.device, self.precision, changed)
        network, name = choose(lossy)
        blended = NO_PARTNER if unblended else f", blend {blend:g}" if blend is not None and not ours else ""
        return network, (name if ours else Path(source).parent.name) + blended

    def upscale(self, visit, upload, weights, blend, form, progress):
        """The path of a result, facts as a dict, and the HTML of slider and close-up. Raises UserError, and Stopped.

        `progress(share, words)` hears how far it is.
        """
        if not upload:
            raise UserError("drop a picture first")
        path, mine = Path(upload), (upload, weights, blend, form)
        with self.computing:
            if visit.made[0] == mine and time.time() - visit.made[1] < 1:  # Gradio tells of some changes twice
                return visit.made[2]
            visit.uploads.add(path)
            start = time.perf_counter()

            def go_on(done=0, total=1):
                if visit.wanted != mine:
                    raise Stopped
                left = f", {duration((time.perf_counter() - start) * (total - done) / done)} left" if done else ""
                progress(done / total, f"enlarging{left}" if done < total else "writing the file")

            try:
                result = self.result(visit, path, weights, blend, form, go_on)
                visit.made = mine, time.time(), result
                return result
            except OSError as error:
                raise UserError(error.strerror or str(error)) from None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError("not enough memory for its result") from None
            finally:
                self.computed = time.time()
                if visit.closed:
                    self.delete(visit)
                give_back_memory()

    def result(self, visit, path, weights, blend, form, go_on):
        """As `upscale`, with OSErrors; `go_on(done, total)` hears of each tile."""
        start = time.perf_counter()
        if not path.is_file():
            raise UserError("it is no longer here; drop it again")
        kind = check_file(path, self.megapixels)
        go_on()
        picture = read_picture(path)
        network, label = self.network(weights, blend, picture.lossy)
        scale = network.config["scale"]
        form = "png" if form == PNG else LOSSY_INPUTS.get(kind, picture.format)
        folder = visit.folder / secrets.token_hex(8)  # a new one, or the browser would show what it has of the old
        for old in visit.folder.iterdir():
            shutil.rmtree(old)
        folder.mkdir()
        target = path_of_result(folder / path.stem, f"_x{scale}{FORMATS[form]}")
        first = []

        def keep_first(frame, result):
            if not first:
                first.extend((on_white(frame), reduced(on_white(result))))

        done = upscale_picture(picture, target, network, on_frame=keep_first, progress=go_on)
        before, after = first
        size = after.shape[1::-1]
        for name, image in {"before": enlarge(before, size[::-1]), "after": after}.items():
            Image.fromarray(image).save(folder / f"{name}.jpg", quality=95, subsampling=0, icc_profile=rgb_profile(picture))
        go_on()
        if not visit.shown:
            visit.shown = path, place_of_detail(before, CLOSE_UP // scale)
        large = "{}x{}".format(*done.size)
        frames = f", {picture.count} frames" * (picture.count > 1)
        caption = "The first frame. " * (picture.count > 1) + "Click it for a close-up."
        if size != done.size:
            caption = f"Reduced from {large} to {size[0]}x{size[1]} pixels; the file is whole. " + caption
        told = {
            "size": "{}x{} → ".format(*picture.size) + large + frames,
            "weights": label,
            "time": f"{time.perf_counter() - start:.1f} s, of which {done.seconds:.1f} s in the network",
            "file": f"{target.name}, {target.stat().st_size / 1e6:.2f} MB",
            "note": done.remark,
        }
        view = slider(address(folder / "before.jpg"), address(folder / "after.jpg"), size, path.name, label, caption)
        return target, told, view, self.close_up(visit, weights, blend)

    def close_up(self, visit, weights, blend, at=None):
        """The HTML of the close-up, "" without a picture; `at`, (x, y) from 0 to 1 in the picture, is its new middle."""
        if not visit.shown:
            return ""
        path, place = visit.shown
        picture = kept_picture(path)
        network, label = self.network(weights, blend, picture.lossy)
        scale, (height, width) = network.config["scale"], picture.rgb.shape[:2]
        side = CLOSE_UP // scale
        if at:
            place = [round(share * whole - side / 2) for share, whole in zip(at[::-1], (height, width))]
        top, left = (max(0, min(edge, whole - side)) for edge, whole in zip(place, (height, width)))
        visit.shown = path, (top, left)
        area = top, left, min(height, top + side), min(width, left + side)
        enlarged = upscale_area(network, picture.rgb, area)
        images = {"bicubic": bicubic_area(picture.rgb, area, scale)}
        images[label] = without_colour(enlarged) if picture.gray else enlarged
        return close_ups(images, picture.profile, f"Close-up at 100 %, from {left}, {top} of the input.")


# ---------------------------------------------------------------------------------------------------------------------
# The page itself
# ---------------------------------------------------------------------------------------------------------------------


def import_gradio():
    try:
        import gradio
    except ImportError:
        raise UserError("the page needs Gradio: pip install -r requirements-app.txt") from None
    return gradio


def build(page):
    """The Gradio Blocks of a Page."""
    gr = import_gradio()

    @contextlib.contextmanager
    def sentences(upload):
        """Let a UserError reach the visitor as one sentence, in which files have their names alone."""
        try:
            yield
        except UserError as error:
            name = Path(upload).name if upload else "the page"
            text = without_folders(str(error), page.folder)
            text = text if name in text else f"{name}: {text}"
            raise gr.Error(text, duration=None, print_exception=False) from None

    def choose(upload, weights, blend, form, request: gr.Request):
        page.choose(page.visit(request.session_hash), upload, weights, blend, form)

    def upscale(upload, weights, blend, form, request, progress):
        told = [0.0]

        def tell(share, words):
            if time.perf_counter() > told[0] + 0.1:
                told[0] = time.perf_counter()
                progress(share, desc=words)

        with sentences(upload):
            return page.upscale(page.visit(request.session_hash), upload, weights, blend, form, tell)

    def show(upload, weights, blend, form, request: gr.Request, progress=gr.Progress()):  # noqa: B008, Gradio looks for it
        if not upload:
            return gr.skip(), facts({"note": "Drop a picture first."}), gr.skip(), gr.skip()
        try:
            target, told, view, near = upscale(upload, weights, blend, form, request, progress)
        except Stopped:
            return [gr.skip()] * 4
        return gr.DownloadButton(value=target, interactive=True), facts(told), view, near

    def serve(upload, weights, blend, form, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Enlarge a picture as test.py does: the file of the result, and what was done.

        Weights as the page offers them; blend from 0 (faithful) to 1 (sharp); the file "PNG" or "as the input".
        """
        choose(upload, weights, blend, form, request)
        try:
            return upscale(upload, weights, blend, form, request, progress)[:2]
        except Stopped:
            raise gr.Error("stopped", print_exception=False) from None

    def show_close_up(weights, blend, request: gr.Request):
        with sentences(None):
            return page.close_up(page.visit(request.session_hash), weights, blend)

    def move_close_up(weights, blend, event: gr.EventData, request: gr.Request):
        with sentences(None):
            at = float(event.x), float(event.y)
            return page.close_up(page.visit(request.session_hash), weights, blend, at)

    def stop(request: gr.Request):
        page.visit(request.session_hash).wanted = ()
        return facts({"note": "Stopped."})

    def show_nothing():
        return gr.DownloadButton(value=None, interactive=False), "", EMPTY, ""

    def take_example(name):
        return str(page.examples[name])

    def leave(request: gr.Request):
        page.leave(request.session_hash)

    def names():
        page.weights = weights_there()
        return gr.Dropdown(choices=list(page.weights))

    first = next(iter(page.weights), None)
    with gr.Blocks(title="SRGAN", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, DAY)) as blocks:
        gr.Markdown("# SRGAN\nDrop or paste a picture. It is enlarged on the computer that runs this page.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="Picture", elem_id="picture", height=140)
                with gr.Row(elem_id="examples"):
                    examples = {name: gr.Button(name, size="sm", icon=path) for name, path in page.examples.items()}
                weights = gr.Dropdown(list(page.weights), value=first, label="Weights", info=WEIGHTS_INFO)
                blend = gr.Slider(0, 1, 1, step=0.05, label="Blend", info="0: faithful, 1: sharp", elem_id="blend")
                form = gr.Radio([PNG, AS_INPUT], value=PNG, label="File")
                with gr.Row():
                    start = gr.Button("Enlarge", variant="primary", min_width=80)
                    halt = gr.Button("Stop", variant="stop", min_width=80)
                told = gr.HTML(elem_id="facts")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
            with gr.Column(scale=3, min_width=320):
                view = gr.HTML(EMPTY, elem_id="view", js_on_load=(HERE / "app.js").read_text(), min_height=240)
                near = gr.HTML(elem_id="near")
        inputs, outputs = [upload, weights, blend, form], [download, told, view, near]
        computing = {"concurrency_id": "upscale", "concurrency_limit": 1, "show_progress_on": view}
        private = {"api_visibility": "private"}

        def run_after(event):
            event.then(show, inputs, outputs, trigger_mode="multiple", **computing, **private)

        changes = upload.upload, weights.input, blend.release, form.input, start.click
        run_after(gr.on(changes, choose, inputs, queue=False, **private))
        for name, button in examples.items():
            taken = button.click(functools.partial(take_example, name), None, upload, queue=False, **private)
            run_after(taken.then(choose, inputs, queue=False, **private))
        upload.clear(choose, inputs, queue=False, **private).then(show_nothing, None, outputs, queue=False, **private)
        quick = {"concurrency_id": "close-up", "show_progress": "hidden", "trigger_mode": "always_last"} | private
        blend.input(show_close_up, [weights, blend], near, **quick)
        view.select(move_close_up, [weights, blend], near, **quick)
        halt.click(stop, None, told, queue=False, api_name="stop")
        api = gr.Button(visible=False)
        api.click(serve, inputs, [download, gr.JSON(visible=False)], api_name="upscale", **computing)
        blocks.load(names, None, weights, **private)
        blocks.unload(leave)
    page.keep_what_is_there()
    return blocks


@contextlib.contextmanager
def pictures_of_gradio_in(folder):
    """Let Gradio keep there what is brought, and serve nothing but that."""
    before, os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR", ""), str(folder)
    try:
        yield folder
    finally:
        os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def served(args):
    """The page while it is served, as Gradio's Blocks; its pictures are deleted when this ends."""
    gr = import_gradio()
    folders = tempfile.TemporaryDirectory(prefix="srgan_page_")
    with folders as parent, pictures_of_gradio_in(Path(parent).resolve() / "pictures") as folder:
        page = Page(folder, pick_device(args.device), args.precision, args.max_megapixels)
        if not page.weights:
            raise UserError("no weights: neither those that ship nor a best.pth of a run are in checkpoints/")
        fonts = {name: [gr.themes.Font(family)] for name, family in (("font", "system-ui"), ("font_mono", "monospace"))}
        blocks = build(page).queue(api_open=False)
        try:
            blocks.launch(
                server_name=args.host,
                server_port=args.port,
                share=args.share,
                inbrowser=not args.no_browser and has_display(),
                max_file_size=int(args.max_megapixels * 1e6 * BYTES_PER_PIXEL),
                footer_links=["api", "settings"],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                theme=gr.themes.Default(**fonts),
                css=(HERE / "app.css").read_text(encoding="utf-8"),
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise UserError(f"{args.host}, port {args.port or 'from 7860 on'}: cannot be had ({error})") from None
        ended = threading.Event()

        def sweep_each_minute():
            while not ended.wait(MINUTE):
                page.sweep()

        threading.Thread(target=sweep_each_minute, daemon=True).start()
        try:
            yield blocks
        finally:
            ended.set()
            blocks.close(verbose=False)


def main(args):
    def end(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # so that the pictures are deleted then, too
    with served(args) as blocks:
        blocks.block_thread()


def has_display():
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    with user_errors():
        main(args)
