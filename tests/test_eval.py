"""Rows for finished pictures of any method, and columns by the package pyiqa.

That is too heavy for requirements-dev.txt (it brings transformers, timm and OpenCV): without it their tests are skipped.
"""

import json
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, refusal
from PIL import Image

import eval as eval_script
import image_lists
import metrics
import more_metrics
import utils
from datasets import TestPairs
from models import SRResNet
from pictures.pixels import downscale, enlarge
from weights import save_checkpoint


@pytest.fixture
def hr(work, photographs):
    """A folder of three HR images, and what another method made of them."""
    for folder in ("hr", "theirs"):
        (work / folder).mkdir()
    for name, img, ending in zip(("baby", "bird_HR", "101085"), photographs, (".png", "_x4.png", "_SomeNet.png")):
        Image.fromarray(img).save(f"hr/{name}.png")
        img = img[: img.shape[0] // 4 * 4, : img.shape[1] // 4 * 4]
        finished = enlarge(downscale(img, 4), 4, "bilinear")
        Image.fromarray(finished).save(f"theirs/{name.removesuffix('_HR')}{ending}")
    return work / "hr"


def figures(*flags):
    call("eval", "--device", "cpu", "--output", "out", *flags)
    return json.loads(Path("out/metrics.json").read_text())


def table():
    return Path("out/metrics.md").read_text().splitlines()


# ---------------------------------------------------------------------------------------------------------------------
# Finished pictures
# ---------------------------------------------------------------------------------------------------------------------


def test_finished_pictures_are_a_row(hr):
    results = figures("--test-sets", "hr", "--results", "theirs", "mine=theirs")
    assert list(results) == ["bicubic", "theirs", "mine"] and results["mine"] == results["theirs"]
    for path, entry in zip(sorted(hr.iterdir()), results["theirs"]["hr"], strict=True):
        hr_img = np.asarray(Image.open(path))
        finished = next(np.asarray(Image.open(file)) for file in Path("theirs").iterdir() if file.name[:4] == path.name[:4])
        hr_img = hr_img[: finished.shape[0], : finished.shape[1]]
        assert entry["psnr"] == metrics.psnr(finished, hr_img, 4) and entry["ssim"] == metrics.ssim(finished, hr_img, 4)
    assert results["bicubic"] == figures("--test-sets", "hr")["bicubic"]
    assert table()[0] == "| x4, PSNR / SSIM | hr |"


def test_finished_pictures_of_several_sets_and_their_panels(hr, photographs):
    Path("more").mkdir()
    Path("all/more").mkdir(parents=True)
    Image.fromarray(photographs[4]).save("more/baby.png")
    Image.fromarray(photographs[4]).save("all/more/baby.png")
    Path("theirs").rename("all/hr")
    results = figures("--test-sets", "hr", "more", "--results", "all", "--save-images")
    assert [len(results["all"][name]) for name in ("hr", "more")] == [3, 1]
    assert results["all"]["more"][0]["psnr"] is None  # infinite
    assert Path("out/hr/101085_all.png").is_file() and Path("out/more/baby_all.png").is_file()


@pytest.mark.parametrize("called", ["panel", "old_bicubic"])
def test_no_picture_is_written_over_another(hr, photographs, capsys, called):
    Image.fromarray(photographs[1]).save("hr/baby_old.png")
    Image.fromarray(photographs[1]).save("theirs/baby_old.png")
    flags = ["--device", "cpu", "--output", "out", "--test-sets", "hr", "--results", f"{called}=theirs"]
    line = refusal(capsys, "eval", *flags, "--save-images")
    assert "--save-images" in line and f"_{called}.png" in line
    assert not Path("out").exists()
    assert called in figures(*flags[4:])


def test_results_are_not_written_beside_the_pictures_to_measure(hr, capsys):
    for flags in (["--output", "."], ["--output", ".", "--results", "hr=theirs"]):
        sets = ["theirs=hr"] if flags[2:] else ["hr"]
        line = refusal(capsys, "eval", "--device", "cpu", "--test-sets", *sets, *flags, "--save-images")
        assert "--output" in line and ("theirs" if flags[2:] else "hr") in line
    assert len(list(hr.iterdir())) == 3


def test_a_blend_takes_no_row_of_another(hr, capsys):
    torch.manual_seed(0)
    for name in ("blend_0.5", "other"):
        save_checkpoint(f"{name}.pth", {"config": SRResNet(4, 1, 8).config, "weights": SRResNet(4, 1, 8).state_dict()})
    flags = ["--device", "cpu", "--test-sets", "hr", "--weights", "blend_0.5.pth", "other.pth", "--blend"]
    for shares in (["0.5"], ["0.3", "0.30000001"]):
        assert "two rows would be called blend_0." in refusal(capsys, "eval", *flags, *shares)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_finished_picture_may_have_the_pixels_that_are_cropped(tmp_path, photographs, scale):
    paths = [tmp_path / "a.png"]
    Image.fromarray(photographs[0][:71, :95]).save(paths[0])
    assert metrics.evaluate(paths, TestPairs(paths, scale))[0]["psnr"] == np.inf
    other = tmp_path / "b.png"
    Image.fromarray(photographs[0][:68]).save(other)
    with pytest.raises(utils.ImageError, match="b.png: 96x68 pixels, and its HR image 9[34]x"):
        metrics.evaluate([other], TestPairs(paths, scale))


@pytest.mark.parametrize(
    "hr_name, name",
    [("baby", "baby"), ("baby", "BABY"), ("baby_HR", "baby"), ("img_001", "img_001_SRF_4_SwinIR"), ("3096", "3096x4")]
    + [("img_1_HR", "img_1_x4_srgan_x4"), ("a.b", "a.b_x4"), ("été", "été-EDSR"), ("x4", "x4"), ("[a]", "[a]_method")],
)
def test_names_that_belong_together(tmp_path, hr_name, name):
    for other in (name, "img_0010", "babylon", "30960", "aXb_x4"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{other}.png")
    assert image_lists.finished_pictures(tmp_path, "set", [Path(f"hr/{hr_name}.png")]) == [tmp_path / f"{name}.png"]


@pytest.mark.parametrize(
    "names, said",
    [(["101085_a", "101085_b"], "several pictures"), (["babylon"], "no picture"), ([], "no images"), (None, "no such folder")],
)
def test_pictures_that_do_not_belong_together(hr, names, said, capsys):
    if names is not None:
        Path("wrong").mkdir()
    for name in names or ():
        Image.new("RGB", (8, 8)).save(f"wrong/{name}.png")
    error = refusal(capsys, "eval", "--test-sets", "hr/", "--results", "wrong")
    assert said in error and "wrong" in error


def test_one_picture_is_not_compared_with_two(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "baby.png")
    with pytest.raises(utils.UserError, match="a_HR.png|baby.jpg"):
        image_lists.finished_pictures(tmp_path, "", [Path("x/baby.png"), Path("y/baby.jpg")])


def test_what_is_asked_must_be_there(hr, capsys):
    assert "give --test-sets, or --results" in refusal(capsys, "eval")
    assert "--weights needs --test-sets" in refusal(capsys, "eval", "--results", "theirs", "--weights", "a.pth")
    for flag in (["--save-images"], ["--self-ensemble"], ["--blend", "0.5"], ["--lr-folder", "hr"]):
        error = refusal(capsys, "eval", "--results", "theirs", "--metrics", "niqe", *flag)
        assert f"{flag[0]} needs --test-sets" in error
    assert "needs --metrics" in refusal(capsys, "eval", "--results", "theirs")
    assert "called bicubic" in refusal(capsys, "eval", "--test-sets", "hr", "--results", "bicubic=theirs")
    for flag in (["--lpips"], ["--metrics", "psnr"], ["--metrics", "SSIM"]):
        error = refusal(capsys, "eval", "--results", "theirs", *flag)
        assert f"{flag[-1].removeprefix('--')} compares with HR images" in error and "--test-sets" in error


# ---------------------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------------------


def test_lpips_is_ours_by_either_name(hr, monkeypatch):
    monkeypatch.setattr(eval_script, "load_lpips", lambda *_: lambda sr_img, hr_img: 0.25)
    by_flag = figures("--test-sets", "hr", "--lpips"), table()
    for names in (["lpips"], ["psnr", "ssim", "LPIPS"], ["lpips", "lpips", "psnr"]):
        assert (figures("--test-sets", "hr", "--metrics", *names), table()) == by_flag
    assert by_flag[1][0] == "| x4, PSNR / SSIM / LPIPS | hr |" and by_flag[1][2].endswith(" / .2500 |")


def test_cells_of_figures_of_every_size():
    values = {"psnr": 30.0, "ssim": 0.81, "a": 10.25, "b": 0.5, "c": -0.5, "d": 200.125, "e": -10.0}
    assert eval_script.table_cell([{"image": "x"} | values]) == "30.00 / .8100 / 10.2500 / .5000 / -.5000 / 200.1250 / -10.0000"


def test_without_the_package_it_is_named(hr, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    for flags in (["--test-sets", "hr"], ["--results", "theirs"]):
        error = refusal(capsys, "eval", *flags, "--metrics", "niqe", "gmsd")
        assert "--metrics niqe gmsd" in error and "pip install pyiqa" in error


def test_each_picture_is_measured_alone(tmp_path, photographs):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, img in zip(paths, photographs):
        Image.fromarray(img).save(path)
    entries = metrics.evaluate_alone(
        paths, {"mean": lambda img, hr_img: float(img.mean()), "none": lambda *imgs: imgs[1] is None}
    )
    assert entries == [{"image": path.name, "mean": img.mean(), "none": True} for path, img in zip(paths, photographs)]


@pytest.fixture(scope="session")
def pyiqa():
    return pytest.importorskip("pyiqa", reason="the package pyiqa is missing")


@pytest.fixture
def offline(pyiqa, tmp_path, monkeypatch):
    """No network, and none of the weights that a cache may hold."""
    from pyiqa.utils import download_util

    def fail(url, *_, **__):
        raise urllib.error.URLError("no network")

    for module in (download_util, torch.hub):
        monkeypatch.setattr(module, "download_url_to_file", fail)
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "cache/pyiqa"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_columns_are_what_pyiqa_makes_of_the_files(pyiqa, hr):
    results = figures("--test-sets", "hr", "--results", "theirs", "--metrics", "GMSD", "vif", "fsim", "piqe", "gmsd")
    assert table()[0] == "| x4, PSNR ↑ / SSIM ↑ / GMSD ↓ / VIF ↑ / FSIM ↑ / PIQE ↓ | hr |"
    for name in ("gmsd", "vif", "fsim", "piqe"):
        metric = pyiqa.create_metric(name, device="cpu")
        for hr_name, finished, entry in zip(
            ("101085", "baby", "bird_HR"), sorted(Path("theirs").iterdir()), results["theirs"]["hr"]
        ):
            Path("cut.png").unlink(missing_ok=True)
            size = Image.open(finished).size
            Image.open(f"hr/{hr_name}.png").crop((0, 0, *size)).save("cut.png")
            expected = metric(str(finished)) if name == "piqe" else metric(str(finished), "cut.png")
            assert entry[name] == pytest.approx(expected.item(), rel=1e-5)
    plain = figures("--test-sets", "hr")["bicubic"]["hr"]
    for entry, before in zip(results["bicubic"]["hr"], plain, strict=True):
        assert before.items() <= entry.items()


def test_finished_pictures_without_hr(pyiqa, hr, capsys):
    results = figures("--results", "theirs", "hr", "--metrics", "piqe", "entropy")
    assert [len(results[name]["pictures"]) for name in ("theirs", "hr")] == [3, 3]
    assert table()[0] == "| without reference, PIQE ↓ / ENTROPY ↑ | pictures |" and table()[2].startswith("| theirs | ")
    metric = pyiqa.create_metric("piqe", device="cpu")
    entry = results["hr"]["pictures"][1]
    assert entry["image"] == "baby.png" and entry["piqe"] == pytest.approx(metric("hr/baby.png").item(), rel=1e-5)


@pytest.mark.parametrize("name, meant", [("dist", "dists"), ("nique", "niqe"), ("ms-ssim", "ms_ssim"), ("lpip", "lpips")])
def test_an_unknown_name_is_refused_with_what_was_meant(pyiqa, hr, capsys, name, meant):
    error = refusal(capsys, "eval", "--test-sets", "hr", "--metrics", name)
    assert f"--metrics {name}" in error and meant in error


@pytest.mark.parametrize(
    "name, said",
    [("fid", "one by one"), ("clipscore", "one by one"), ("gmsd", "--test-sets"), ("dists", "--test-sets")],
)
def test_what_a_folder_of_pictures_cannot_tell(pyiqa, hr, capsys, name, said):
    error = refusal(capsys, "eval", "--results", "theirs", "--metrics", "piqe", name)
    assert f"--metrics {name}" in error and said in error


@pytest.mark.parametrize(
    "name, file, by_flag",
    [("niqe", "pyiqa/niqe_modelparameters.mat", True), ("dists", "checkpoints/vgg16-397923af.pth", False)]
    + [("brisque", "pyiqa/brisque_svm_weights.pth", True), ("musiq", "pyiqa/musiq_koniq_ckpt-e95806b9.pth", True)],
)
def test_a_failed_download_is_one_line_that_names_the_file(offline, hr, capfd, name, file, by_flag):
    error = refusal(capfd, "eval", "--test-sets", "hr", "--metrics", name)
    assert f"--metrics {name}: https://" in error and str(offline / file) in error
    assert (f"--metric-weights {name}=FILE" in error) == by_flag
    assert not (hr.parent / "out").exists()


def test_weights_given_as_a_file(offline, pyiqa, work, capfd):
    from scipy.io import savemat
    from skimage import data

    rng = np.random.default_rng(0)
    spread = rng.normal(size=(36, 36))
    savemat("mine.mat", {"mu_prisparam": rng.normal(size=(1, 36)), "cov_prisparam": spread @ spread.T})
    Path("pictures").mkdir()
    Image.fromarray(data.camera()[:200, :200]).save("pictures/camera.png")
    flags = ["--results", "pictures", "--metrics", "niqe", "--metric-weights"]
    found = figures(*flags, "niqe=mine.mat")["pictures"]["pictures"][0]["niqe"]
    expected = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path="mine.mat")("pictures/camera.png").item()
    assert found == pytest.approx(expected, rel=1e-6) and table()[0].startswith("| without reference, NIQE ↓ |")
    Path("text.mat").write_text("not weights")
    for word, said in {
        "niqe=text.mat": "not its weights",
        "niqe=none.mat": "no such file",
        "piqe=mine.mat": "NAME=FILE",
    }.items():
        error = refusal(capfd, "eval", *flags, word)
        assert f"--metric-weights {word}" in error and said in error
    error = refusal(capfd, "eval", *flags[:2], "--metrics", "piqe", "--metric-weights", "piqe=mine.mat")
    assert "takes no file" in error


@pytest.mark.parametrize("name", ["vif", "cw_ssim"])
def test_a_picture_that_a_metric_cannot_take_is_one_line(pyiqa, work, capfd, name):
    Path("small").mkdir()
    Image.effect_noise((24, 20), 50).convert("RGB").save("small/a.png")
    error = refusal(capfd, "eval", "--test-sets", "small", "--metrics", name)
    assert f"--metrics {name}" in error and "24x20" in error


def test_random_crops_are_the_same_each_time(pyiqa, photographs, monkeypatch):
    class Crops(torch.nn.Module):
        lower_better = True

        def forward(self, img):
            return img.mean() + torch.rand(()) + np.random.rand()

    monkeypatch.setattr(pyiqa, "create_metric", lambda *_, **__: Crops())
    measure, lower_is_better = more_metrics.load_metric("maniqa")
    assert lower_is_better and len({measure(photographs[0], None) for _ in range(3)}) == 1


def test_a_bar_in_a_name_makes_no_column(hr, capsys):
    Path("theirs").rename("a|b")
    figures("--test-sets", hr, "--results", "p|q=a|b")
    assert "| p&#124;q | " in capsys.readouterr().out
