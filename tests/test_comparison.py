"""The page with before/after sliders, by itself and in a browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from pictures import comparison

TELL = """<script>
  const input = document.querySelector(".slider input");
  const before = getComputedStyle(document.querySelector(".slider .after")).clipPath;
  input.value = 80; input.dispatchEvent(new Event("input"));
  const loaded = [...document.images].every(image => image.complete && image.naturalWidth > 0);
  document.title = [before, getComputedStyle(document.querySelector(".slider .after")).clipPath, loaded].join("|");
</script></html>"""


@pytest.fixture
def page(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (300, 400, 3), dtype=np.uint8) for _ in range(3)]
    figure = comparison.slider_figure('a "<b>.png', images, ["bicubic", "SR", "HR"], 0, 1)
    comparison.write_page(tmp_path / "page.html", "A & B", [figure, figure])
    return tmp_path / "page.html"


def test_a_title_may_hold_any_word(page, tmp_path):
    comparison.write_page(tmp_path / "body.html", "BODY of TITLE", ["<figure></figure>"])
    text = (tmp_path / "body.html").read_text()
    assert text.count("<figure></figure>") == 1 and text.count("BODY of TITLE") == 2


def test_page_needs_nothing_but_itself(page):
    text = page.read_text()
    assert set(re.findall(r'src="([^:"]*:)', text)) == {"data:"}
    assert "http" not in text
    assert text.count('<input type="range"') == 2
    assert "a &quot;&lt;b&gt;.png" in text and "A &amp; B" in text


def test_slider_moves_in_a_browser(page):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page.write_text(page.read_text().replace("</html>", TELL))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    command += [f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    before, after, loaded = re.search(r"<title>(.*?)</title>", shown)[1].split("|")
    assert "50%" in before and "80%" in after and loaded == "true"


def test_close_ups_show_the_same_place_with_most_detail():
    quiet, busy = np.zeros((600, 600, 3), np.uint8), np.zeros((600, 600, 3), np.uint8)
    busy[300:, 300:] = np.random.default_rng(0).integers(0, 256, (300, 300, 1), dtype=np.uint8)
    squares = comparison.close_up([busy, busy])
    assert squares[0].shape == (256, 256, 3) and (squares[0] > 0).mean() > 0.6
    assert not comparison.close_up([quiet, busy])[0].any()


def test_labels_do_not_run_into_each_other():
    row = comparison.labelled_row([np.zeros((10, 10, 3), np.uint8)] * 2, ["a long label, longer than the picture", "b"])
    assert row.width > 300 and row.height == 32


@pytest.mark.parametrize("shape", [(60, 80), (1, 5), (300, 20)])
def test_close_ups_of_a_panel_are_four_times_as_large(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    panel = np.asarray(comparison.with_close_ups([image, image], ["a", "b"]))
    size = max(1, min(shape) // 4)
    assert panel.shape[0] == 22 + shape[0] + 22 + 4 * size
    enlarged = panel[-4 * size :, : 4 * size][::4, ::4]
    found = [(y, x) for y in range(shape[0] - size + 1) for x in range(shape[1] - size + 1)]
    assert any(np.array_equal(image[y : y + size, x : x + size], enlarged) for y, x in found)
