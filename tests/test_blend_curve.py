"""The picture of PSNR against LPIPS along a blend."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("matplotlib")


def entries(psnr, lpips):
    return {"Set5": [{"image": "a", "psnr": psnr, "ssim": 0.8, "lpips": lpips}]}


def draw(tmp_path, results, picture="images/blend.svg"):
    (tmp_path / "metrics.json").write_text(json.dumps(results))
    command = [sys.executable, ROOT / "benchmarks/blend_curve.py", "metrics.json", picture]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def test_the_curve_is_drawn_with_its_shares(tmp_path):
    results = {"bicubic": entries(28, 0.34), "srresnet_x4": entries(31, 0.2), "srgan_x4": entries(29, 0.1)}
    done = draw(tmp_path, results | {"blend_0.5": entries(30.5, 0.13)})
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "images/blend.svg").read_text()
    assert all(f"<!-- {text} -->" in picture for text in ("0", "0.5", "1", "Set5"))


def test_a_page_that_comes_back_exactly_is_left_out(tmp_path):
    results = {name: entries(28, 0.2) for name in ("bicubic", "srresnet_x4", "srgan_x4", "blend_0.5")}
    for name, of_sets in results.items():
        psnr = None if name == "srgan_x4" else 60.0  # as metrics.json has what has no end
        of_sets["Set5"].append({"image": "page", "psnr": psnr, "ssim": 1.0, "lpips": 0.0})
    done = draw(tmp_path, results)
    assert done.returncode == 0 and "Set5: without page" in done.stdout, done.stderr


def test_figures_without_lpips_are_refused(tmp_path):
    results = {name: {"Set5": [{"image": "a", "psnr": 28.0, "ssim": 0.8}]} for name in ("bicubic", "a", "b")}
    done = draw(tmp_path, results)
    assert done.returncode == 2 and "--lpips" in done.stderr and done.stderr.count("\n") == 1


def test_rows_that_are_no_blends_are_refused(tmp_path):
    done = draw(tmp_path, {name: entries(30, 0.2) for name in ("bicubic", "a", "a+")})
    assert done.returncode == 2 and "--blend" in done.stderr and done.stderr.count("\n") == 1


def test_an_ending_of_no_picture_is_refused(tmp_path):
    results = {name: entries(30, 0.2) for name in ("bicubic", "a", "b", "blend_0.5")}
    done = draw(tmp_path, results, "blend.xyz")
    assert done.returncode == 2 and "xyz" in done.stderr and done.stderr.count("\n") == 1
