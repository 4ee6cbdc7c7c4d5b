"""The page in a real browser: what is dropped on it, what it shows, what it gives, and what it leaves behind."""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from PIL import Image, ImageCms
from skimage import data

pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -r requirements-app.txt")

import app
import inference
import upscaling
from models import SRResNet, build_network
from pictures import viewer
from utils import UserError, write_text
from weights import save_checkpoint

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WAIT = 60_000  # ms, on a busy machine
SHIPPED = upscaling.PAIRS
PHOTOGRAPH = Image.fromarray(data.astronaut()[:72, 160:256])


def make_weights(folder):
    """Tiny networks in place of those that ship, and a run for x2; returns what PAIRS is then."""
    runs = {path.stem: 4 for pair in upscaling.PAIRS.values() for path in pair} | {"mine": 2}
    for seed, (name, scale) in enumerate(runs.items()):
        torch.manual_seed(seed)
        network = SRResNet(scale, blocks=1, channels=8)
        path = folder / "mine" / "best.pth" if name == "mine" else folder / f"{name}.pth"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, {"config": network.config, "weights": network.state_dict()})
    return {name: tuple(folder / path.name for path in pair) for name, pair in upscaling.PAIRS.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        pairs = make_weights(folder)
        for module in (app, upscaling):
            patch.setattr(module, "PAIRS", pairs)
            patch.setattr(module, "CHECKPOINTS", folder)
        yield folder


def arguments(**changed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["app.py", "--no-browser", "--device", "cpu", "--max-megapixels", "0.5"])
        return argparse.Namespace(**vars(app.parse_arguments()) | changed)


@pytest.fixture(scope="module")
def blocks(weights):
    with app.served(arguments()) as blocks:
        yield blocks


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need Playwright")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(chromium, blocks, width=1200, **options):
    page = chromium.new_page(viewport={"width": width, "height": 1000}, **options)
    page.set_default_timeout(WAIT)
    with page.expect_request(lambda request: "/heartbeat/" in request.url):  # by its end the page is known to be closed
        page.goto(blocks.local_url)
    return page


@pytest.fixture
def page(chromium, blocks):
    page, errors = open_page(chromium, blocks), []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    page.close()
    assert not errors


def bring(page, path, selector="#view img.after"):
    """Choose a file; returns when the page shows its enlargement."""
    page.locator("#picture input[type=file]").set_input_files(path)
    page.wait_for_selector(selector)
    page.wait_for_selector("#near img")


def close_up(page):
    """The two pictures of the close-up, bicubic and the network's: (H, W, 3) uint8."""
    sources = [image.get_attribute("src") for image in page.locator("#near img").all()]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]


def download(page, folder):
    with page.expect_download() as taken:
        page.locator("#download").click()
    taken.value.save_as(folder / taken.value.suggested_filename)
    return folder / taken.value.suggested_filename


def clip(page):
    """How the upper one of the two pictures is cut."""
    return page.locator("#view img.after").evaluate("image => getComputedStyle(image).clipPath")


def until(condition, seconds=WAIT / 1000):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def gate(monkeypatch):
    """Tiles of 24 pixels, of which the fourth and later ones wait until the gate is open; `gate.times` of each."""
    gate, upscale_tile = threading.Event(), inference.upscale_tile
    gate.times = []

    def slow(*arguments):
        begin = time.monotonic()
        if len(gate.times) > 2:
            gate.wait(WAIT / 1000)
        time.sleep(0.12)  # more often, progress is not told
        upscale_tile(*arguments)
        gate.times.append((begin, time.monotonic()))

    monkeypatch.setattr(inference, "TILE", 24)
    monkeypatch.setattr(inference, "upscale_tile", slow)
    yield gate
    gate.set()


@pytest.fixture
def photo(tmp_path):
    PHOTOGRAPH.save(tmp_path / "photo.png", dpi=(300, 300))
    return tmp_path / "photo.png"


def by_hand(path, *flags):
    """The bytes of what test.py makes of a picture."""
    ending = dict(zip(flags, flags[1:])).get("--format", "png")
    result = path.with_name(f"by_hand.{ending}")
    call("test", path, "--output", result, "--overwrite", "--device", "cpu", *flags)
    return result.read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# In the browser
# ---------------------------------------------------------------------------------------------------------------------


def test_a_picture_is_enlarged_and_its_file_is_that_of_test_py(page, photo, tmp_path):
    bring(page, photo)
    assert "96x72 → 384x288" in page.locator("#facts").inner_text()
    (tmp_path / "got").mkdir()
    result = download(page, tmp_path / "got")
    with Image.open(result) as image:
        assert result.name == "photo_x4.png" and image.size == (384, 288)
    assert result.read_bytes() == by_hand(photo)


def test_the_slider_moves_by_key_and_by_pointer_and_the_picture_is_zoomed(page, photo):
    bring(page, photo)
    before = clip(page)
    page.locator("#view input").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: clip(page) != before)
    box, before = page.locator("#view i").bounding_box(), clip(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] - 80, box["y"] + 60, steps=4)
    page.mouse.up()
    until(lambda: clip(page) != before)
    assert float(page.locator("#view input").input_value()) < 40
    page.get_by_role("button", name="400 %").click()
    until(lambda: page.locator("#view img.after").bounding_box()["width"] == 4 * 384)
    page.get_by_role("button", name="fit").focus()
    page.keyboard.press("Enter")
    until(lambda: page.locator("#view img.after").bounding_box()["width"] == 384)


def test_the_blend_is_seen_at_once_close_up_and_on_release_in_full(page, photo, tmp_path):
    bring(page, photo)
    sharp, facts = close_up(page)[1], page.locator("#facts").inner_text()
    slider = page.locator("#blend input[type=range]")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2, steps=3)
    value = float(slider.input_value())
    page.locator("#near", has_text=f"blend {value:g}").wait_for()
    assert page.locator("#facts").inner_text() == facts
    blended = close_up(page)[1]
    assert blended.shape == sharp.shape and (blended != sharp).mean() > 0.1
    page.mouse.up()
    page.locator("#facts", has_text=f"blend {value:g}").wait_for()
    result = download(page, tmp_path)
    assert result.read_bytes() == by_hand(photo, "--blend", f"{value:g}")
    slider.focus()
    page.keyboard.press("Home")
    page.locator("#facts", has_text="blend 0\n").wait_for()


def test_settings_may_be_chosen_before_the_picture(page, photo):
    page.get_by_label("Weights").click()
    page.get_by_role("option", name="mine (x2)").click()
    page.locator("#facts", has_text="Drop a picture first.").wait_for()
    assert page.get_by_test_id("toast-body").count() == 0
    bring(page, photo)
    assert "96x72 → 192x144" in page.locator("#facts").inner_text()
    page.locator("#blend input[type=range]").focus()
    page.keyboard.press("Home")
    page.locator("#facts", has_text="mine (not blended").wait_for()


def test_a_close_up_is_of_the_place_that_is_clicked(page, tmp_path):
    picture = Image.fromarray(data.astronaut()[:160, 100:340])
    picture.save(tmp_path / "large.png")
    bring(page, tmp_path / "large.png")
    result = np.asarray(Image.open(download(page, tmp_path)))
    plain = np.asarray(picture.resize((960, 640), Image.Resampling.BICUBIC))
    for x, y, corner in ((30, 20, (0, 0)), (480, 320, (32, 72)), (480, 320, (32, 72))):
        if corner == (0, 0):
            page.locator("#view .stage").click(position={"x": x, "y": y})
        else:
            page.get_by_role("button", name="fit").click()
            page.locator("#view .pane").focus()
            page.keyboard.press("Enter")
        top, left = corner
        page.locator("#near", has_text=f"from {left}, {top} of").wait_for()
        before, after = close_up(page)
        here = slice(4 * top, 4 * top + 384), slice(4 * left, 4 * left + 384)
        assert np.array_equal(before, plain[here])
        assert np.abs(after.astype(int) - result[here]).max() <= 2


BAD_FILES = {
    "cut.jpg": "cannot be read",
    "text.png": "of no kind of image",
    "film.mp4": "is a video",
    "huge.png": "this page takes 0.5 megapixels",
    "many.gif": "in 40 frames",
    "empty.webp": "it is empty",
}


def make_bad_files(folder):
    whole = io.BytesIO()
    PHOTOGRAPH.save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:700])
    (folder / "text.png").write_text("<script>alert(1)</script>")
    (folder / "film.mp4").write_bytes(b"no film")
    Image.new("L", (1000, 501)).save(folder / "huge.png")
    frames = [Image.new("L", (120, 120), level) for level in range(40)]
    frames[0].save(folder / "many.gif", save_all=True, append_images=frames[1:])
    (folder / "empty.webp").write_bytes(b"")


def test_a_bad_file_gives_a_sentence_and_the_page_goes_on(page, photo, tmp_path):
    make_bad_files(tmp_path)
    for name, words in BAD_FILES.items():
        page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
        told = page.get_by_text(words)
        told.wait_for()
        text = page.locator("body").inner_text()
        assert name in told.inner_text() and "Traceback" not in text and "srgan_page_" not in text
        page.get_by_test_id("toast-close").click()
        page.locator("#picture button[aria-label=Clear]").click()
    bring(page, photo)


def test_it_stops_within_a_tile_and_shows_how_far_it_is(page, photo, gate):
    page.locator("#picture input[type=file]").set_input_files(photo)
    page.locator("#view", has_text=re.compile(r"enlarging, \d+ s left - 25")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#facts", has_text="Stopped.").wait_for()
    gate.set()
    page.locator("#view", has_text=re.compile("enlarging")).wait_for(state="detached")
    assert len(gate.times) == 4  # of 12
    page.get_by_role("button", name="Enlarge").click()
    page.wait_for_selector("#near img")
    assert page.locator("#view img.after").count() == 1


def test_two_at_once_wait_for_each_other_and_get_their_own(page, photo, chromium, blocks, gate, tmp_path):
    PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "other.png")
    second = open_page(chromium, blocks)
    page.locator("#picture input[type=file]").set_input_files(photo)
    until(lambda: gate.times)
    second.locator("#picture input[type=file]").set_input_files(tmp_path / "other.png")
    second.locator("#view", has_text="queue: 1/1").wait_for()
    gate.set()
    for visitor, size in ((page, (384, 288)), (second, (288, 384))):
        visitor.wait_for_selector("#near img")
        (tmp_path / str(size)).mkdir()
        assert Image.open(download(visitor, tmp_path / str(size))).size == size
    assert len(gate.times) == 26 and all(end <= begin for (_, end), (begin, _) in zip(gate.times, gate.times[1:]))
    second.close()


def kept_files():
    """Files with something in them; Gradio leaves empty ones about for a while."""
    kept = set()
    for folder, _, names in os.walk(os.environ["GRADIO_TEMP_DIR"]):  # passes over folders that go meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(Path(folder, name)).st_size:
                    kept.add(Path(folder, name))
    return kept


def test_nothing_stays_when_a_page_is_closed(chromium, blocks, photo, gate, tmp_path):
    shutil.copy(photo, mine := tmp_path / "mine.png")  # a name of its own, since what earlier tests brought may still be there
    before = kept_files()
    for way in ("while it computes", "afterwards"):
        gate.clear()
        page = open_page(chromium, blocks)
        page.locator("#picture input[type=file]").set_input_files(mine)
        if way == "afterwards":
            gate.set()
            page.wait_for_selector("#near img")
        until(lambda: gate.times and any(path.name == mine.name for path in kept_files() - before))
        page.close()
        gate.set()
        until(lambda: kept_files() <= before)


def test_the_examples_keep_their_icons(chromium, blocks, page):
    """Gradio keeps an example that is chosen where it keeps its icon, and what is chosen is deleted after its page."""
    page.get_by_role("button", name="chelsea").click()
    page.wait_for_selector("#near img")
    page.get_by_role("button", name="coffee").click()
    page.locator("#facts", has_text="coffee").wait_for()
    page.wait_for_selector("#near img")
    other = open_page(chromium, blocks)
    icons = other.locator("#examples img")
    icons.first.wait_for()
    until(lambda: all(icons.evaluate_all("icons => icons.map(icon => icon.complete && icon.naturalWidth > 0)")))
    assert icons.count() == 4
    other.close()


def test_what_is_too_large_to_show_is_shown_reduced(page, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "LARGEST_SHOWN", 100)
    bring(page, photo)
    assert page.locator("#view img.after").get_attribute("width") == "100"
    assert "Reduced from 384x288 to 100x75 pixels" in page.locator("#view").inner_text()
    assert [image.shape for image in close_up(page)] == [(288, 384, 3)] * 2
    assert Image.open(download(page, tmp_path)).size == (384, 288)


def test_on_a_phone_in_the_dark_with_words_for_each_picture(chromium, blocks):
    page = open_page(chromium, blocks, width=360, color_scheme="dark")
    page.get_by_role("button", name="chelsea").click()
    page.wait_for_selector("#near img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colour = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64
    words = [image.get_attribute("alt") for image in page.locator("#view img, #near img").all()]
    assert len(words) == 4 and all("bicubic" in word or "srgan_x4" in word for word in words)
    assert page.locator("input[type=range]").count() == page.locator("input[type=range][aria-label]").count()
    page.close()


PASTE = """async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 60, canvas.height = 40;
  const blob = await new Promise(done => canvas.toBlob(done, "image/png")), data = new DataTransfer();
  data.items.add(new File([blob], "image.png", { type: "image/png" }));
  dispatchEvent(new EVENT);
}"""


@pytest.mark.parametrize("event", ["ClipboardEvent('paste', {clipboardData: data})", "DragEvent('drop', {dataTransfer: data})"])
def test_a_second_picture_is_pasted_or_dropped_anywhere(event, page, photo):
    bring(page, photo)
    page.evaluate(PASTE.replace("EVENT", event))
    page.locator("#facts", has_text="60x40 → 240x160").wait_for()


@pytest.mark.skipif("SCREENSHOT" not in os.environ, reason="SCREENSHOT=docs/images/page.webp makes the README's picture anew")
def test_screenshot(chromium, blocks, monkeypatch):
    for module in (app, upscaling):
        monkeypatch.setattr(module, "PAIRS", SHIPPED)
        monkeypatch.setattr(module, "CHECKPOINTS", ROOT / "checkpoints")
    with app.served(arguments()) as shipped:  # with the weights that ship
        page = open_page(chromium, shipped, width=1280)
        page.get_by_role("button", name="coffee").click()
        page.wait_for_selector("#near img")
        Image.open(io.BytesIO(page.screenshot(full_page=True))).save(ROOT / os.environ["SCREENSHOT"], quality=80)
        page.close()
    app.kept_chooser.cache_clear()  # it knows the tiny networks and these by the same names


# ---------------------------------------------------------------------------------------------------------------------
# Without a browser
# ---------------------------------------------------------------------------------------------------------------------


def make_pictures(folder):
    """Pictures that carry what is easily lost, the file that is asked for, and the flags of test.py for the same."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PHOTOGRAPH.save(folder / "phone.jpg", exif=exif, icc_profile=profile, dpi=(72, 72))
    with_alpha = PHOTOGRAPH.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(PHOTOGRAPH.size))
    with_alpha.save(folder / "alpha.webp", lossless=True)
    Image.fromarray(np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) * 257 + 3).save(folder / "deep.tif")
    PHOTOGRAPH.save(folder / "moving.gif", save_all=True, append_images=[PHOTOGRAPH.rotate(90)], duration=[70, 130])
    return [
        ("phone.jpg", "auto", 1, app.AS_INPUT, ["--format", "jpg"]),
        ("phone.jpg", "clean", 0, app.PNG, ["--weights", "clean", "--blend", "0"]),
        ("alpha.webp", "auto", 0.35, app.PNG, ["--blend", "0.35"]),
        ("deep.tif", "photo", 1, app.AS_INPUT, ["--weights", "photo", "--format", "tiff"]),
        ("moving.gif", "clean", 1, app.AS_INPUT, ["--format", "gif"]),
        ("moving.gif", "mine (x2)", 0.5, app.PNG, ["--weights", "mine/best.pth"]),
    ]


def test_the_file_is_that_of_test_py_to_the_last_byte(blocks, weights, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(blocks.local_url, verbose=False, download_files=tmp_path / "downloads")
    for name, chosen, blend, form, flags in make_pictures(tmp_path):
        path, told = client.predict(handle_file(tmp_path / name), chosen, blend, form, api_name="/upscale")
        flags = [str(weights / flag) if flag.startswith("mine") else flag for flag in flags]
        assert Path(path).read_bytes() == by_hand(tmp_path / name, *flags), (name, told)
        assert Path(path).name.startswith(Path(name).stem + ("_x2." if "mine" in chosen else "_x4."))
    client.close()


def refusal(blocks, value):
    """What the API answers to a file that is named, not brought."""
    body = json.dumps({"data": [value, "clean", 1, app.PNG]}).encode()
    address = f"{blocks.local_url}gradio_api/call/upscale"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request))["event_id"]
    return urllib.request.urlopen(f"{address}/{event}").read().decode()


def test_no_path_that_a_client_names_is_read(blocks, photo):
    for path in (
        photo,
        "/etc/passwd",
        ROOT / "docs/images/chelsea.webp",
        "docs/images/chelsea.webp",
        f"{blocks.local_url}x.png",
    ):
        answer = refusal(blocks, {"path": str(path), "meta": {"_type": "gradio.FileData"}})
        assert "event: error" in answer and "_x4" not in answer
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{blocks.local_url}gradio_api/file={path}")
        assert refused.value.code in (400, 403, 404), path


def test_what_was_left_behind_is_swept(weights, tmp_path, monkeypatch):
    page = app.Page(tmp_path / "uploads", torch.device("cpu"))
    for name, age in (("tmp_old", 100), ("tmp_new", 1)):
        (page.folder / name).write_bytes(b"half a picture")
        os.utime(page.folder / name, (time.time() - age,) * 2)
    old, new = page.visit("old").folder, page.visit("new").folder
    page.visits["old"].last -= 2 * app.DAY
    page.sweep()
    assert set(page.folder.iterdir()) == {page.folder / "tmp_new", new} and not old.exists()


def test_an_upload_whose_page_closed_before_it_told_of_it_is_swept(weights, tmp_path):
    page = app.Page(tmp_path / "uploads", torch.device("cpu"))
    icon, told, untold = (page.folder / name / "photo.png" for name in ("icon", "told", "untold"))
    beside = icon.with_name("the same picture by another name.png")

    def bring(*files):
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"a picture")

    bring(icon)
    page.keep_what_is_there()
    bring(told, untold, beside)
    page.choose(page.visit("a"), str(told), "clean", 1, app.PNG)
    page.sweep()
    assert icon.exists() and told.exists() and untold.exists()  # its page may be about to tell of it
    for file in (icon, told, untold, beside):
        os.utime(file, (time.time() - 2 * app.MINUTE,) * 2)
    with page.computing:  # a program may have brought it, and wait for its turn
        page.sweep()
    assert icon.exists() and told.exists() and untold.exists()
    page.sweep()
    assert icon.exists() and told.exists() and not untold.parent.exists() and not beside.exists()
    page.choose(page.visit("a"), str(icon), "clean", 1, app.PNG)
    page.leave("a")
    assert icon.exists() and not told.parent.exists()


def test_what_one_visitor_drops_another_keeps(weights, tmp_path):
    page = app.Page(tmp_path / "uploads", torch.device("cpu"))
    mine, yours = (page.folder / "hash of the content" / name for name in ("mine.png", "yours.png"))
    mine.parent.mkdir()
    for key, file in (("me", mine), ("you", yours), ("she", yours)):
        file.write_bytes(b"the same picture")
        page.choose(page.visit(key), str(file), "clean", 1, app.PNG)
    page.leave("me")
    assert not mine.exists() and yours.exists()
    page.choose(page.visit("you"), None, "clean", 1, app.PNG)
    assert yours.exists()
    page.leave("she")
    assert not mine.parent.exists()


def test_what_comes_after_the_page_was_closed_is_swept(weights, tmp_path):
    """An event may be under way when its page is closed; it makes the visit anew."""
    page = app.Page(tmp_path / "uploads", torch.device("cpu"))
    page.leave("a")
    brought = page.folder / "hash" / "photo.png"
    brought.parent.mkdir()
    brought.write_bytes(b"a picture")
    page.choose(page.visit("a"), str(brought), "clean", 1, app.PNG)
    page.sweep()
    assert brought.exists()  # not at once: the page may have lost its line for a moment alone
    page.visits["a"].last -= 2 * app.MINUTE
    page.sweep()
    assert not brought.exists() and not page.visits


@pytest.mark.parametrize("message", ["{}: cannot be read", "cannot write {}: No space left on device", "not enough memory"])
def test_no_path_of_the_server_is_told(message):
    folder = Path("/var/tmp/srgan_page_1/uploads")
    told = viewer.without_folders(message.format(folder / "0a1b" / "my photo.png"), folder)
    assert "srgan_page" not in told and told == message.format("my photo.png")


def test_pictures_that_are_large_are_told_before_they_are_decoded(tmp_path):
    Image.new("1", (20000, 8000)).save(tmp_path / "bomb.png")
    start = time.process_time()
    with pytest.raises(UserError, match="20000x8000 pixels, and this page takes 16 megapixels"):
        app.check_file(tmp_path / "bomb.png", 16)
    assert time.process_time() - start < 1


def test_the_weights_to_choose_from(weights, monkeypatch, tmp_path, capsys):
    assert list(app.weights_there()) == ["auto", "clean", "photo", "mine (x2)"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "best.pth").write_bytes(b"cut")
    monkeypatch.setattr(app, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(app, "PAIRS", {"clean": app.PAIRS["clean"], "photo": (tmp_path / "a.pth", tmp_path / "b.pth")})
    assert list(app.weights_there()) == ["clean"] and "broken" in capsys.readouterr().err


def test_a_run_of_stage_2_is_blended_with_what_it_was_started_from(tmp_path, monkeypatch):
    runs = {"first": ("srresnet", 8), "second": ("srgan", 8), "wider": ("srgan", 12)}
    for name, (arch, channels) in runs.items():
        network = build_network({"arch": arch, "scale": 2, "blocks": 1, "channels": channels})
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        state = {"config": network.config, "weights": network.state_dict()}
        save_checkpoint(tmp_path / "checkpoints" / name / "best.pth", state)
        write_text(tmp_path / "results" / name / "config.json", json.dumps({"init": "checkpoints/first/best.pth"}))
    monkeypatch.setattr(app, "CHECKPOINTS", tmp_path / "checkpoints")
    partners = {
        name: partner and Path(partner).parent.name for name, (_, partner) in app.weights_there().items() if "x2" in name
    }
    assert partners == {"first (x2)": None, "second (x2)": "first", "wider (x2)": None}


def test_a_port_that_is_taken_and_a_missing_gradio_are_told(blocks, monkeypatch):
    with pytest.raises(UserError, match=f"port {blocks.server_port}"), app.served(arguments(port=blocks.server_port)):
        pass
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install -r requirements-app.txt"), app.served(arguments()):
        pass
