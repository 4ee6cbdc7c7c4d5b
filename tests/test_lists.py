"""create_data_lists.py on folders as people have them."""

import json
import ntpath
import os
import re
import shutil
import sys
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from conftest import call, make_lists, refusal
from PIL import Image

import datasets
import train_srresnet
from create_data_lists import name_in_list
from datasets import SRDataset, TestPairs
from image_lists import named_sets, read_list
from image_lists import test_images as images_of_set
from pictures import deep
from pictures.pixels import crop_to_multiple, downscale, enlarge, read_image
from runs import load_data


def names_in(folder, which):
    return json.loads((folder / f"{which}_images.json").read_text(encoding="utf-8"))


def found_in(folder, *which):
    return {path.resolve() for name in which for path in read_list(folder / f"{name}_images.json")}


@pytest.fixture
def junk(tmp_path, photographs):
    """A folder with eight usable images and one or more of each kind of file that is none."""
    folder = tmp_path / "photos"
    good = ["a.png", "B.JPG", "c.jpeg", "d.webp", "nested/deep/e.bmp", "folder.png/f.tif", "with space.png", "größe 象.png"]
    for name, photograph in zip(good, photographs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(folder / name)
    (folder / "text.jpg").write_text("this is no image")
    (folder / "nothing.png").write_bytes(b"")
    jpeg = (folder / "B.JPG").read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "broken link.png").symlink_to(folder / "no such file.png")
    Image.fromarray(photographs[0][:31, :64]).save(folder / "small.png")
    (folder / "table.csv").write_text("a,b\n")
    (folder / "Thumbs.db").write_bytes(b"\0")
    return folder, {folder / name for name in good}


def test_junk_is_left_out_and_counted(tmp_path, junk, capsys):
    folder, good = junk
    flags = ["--min-size", 32, "--validation-images", 2, "--output-folder", tmp_path / "data"]
    call("create_data_lists", "--train-folders", folder, *flags)
    assert found_in(tmp_path / "data", "train", "validation") == good
    out = capsys.readouterr().out
    assert "training: 8 images; " in out
    counts = {reason: int(count) for count, reason in re.findall(r"left out: (\d+) ([^;\n]+)", out)}
    assert counts == {"not a readable image": 4, "under 32 pixels": 1, "not the ending of an image": 2}


def test_pictures_that_use_a_part_of_16_bits_are_told(tmp_path, photographs, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    twelve = photographs[0][..., 0].astype(np.uint16) * 16
    Image.fromarray(twelve).save(folder / "undeclared.png")
    Image.fromarray(twelve).save(folder / "declared.tif", tiffinfo={281: 4095})
    Image.fromarray(twelve * 16).save(folder / "sixteen.png")
    Image.fromarray(photographs[1] // 16).save(folder / "night.png")
    call("create_data_lists", "--test-folders", folder, "--output-folder", tmp_path / "data")
    told = [line for line in capsys.readouterr().out.splitlines() if "nearly black" in line]
    assert len(told) == 1 and told[0].startswith("scans: 2 images") and "night.png" in told[0]


def test_names_are_relative_sorted_and_readable(tmp_path, junk):
    folder, _ = junk
    call("create_data_lists", "--test-folders", folder, "--output-folder", tmp_path / "data")
    names = names_in(tmp_path / "data", "photos_test")
    assert names == sorted(names) and len(names) == len(set(names)) == 9  # a test image may be small
    assert all(name.startswith("../photos/") for name in names)
    assert "../photos/größe 象.png" in names and "../photos/with space.png" in names
    assert "größe 象.png" in (tmp_path / "data" / "photos_test_images.json").read_text(encoding="utf-8")  # not escaped
    assert all(read_image(path).shape[2] == 3 for path in read_list(tmp_path / "data/photos_test_images.json"))


def test_the_data_folder_may_be_a_link(tmp_path, image_folder, monkeypatch):
    (tmp_path / "big/disk").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here/data").symlink_to(tmp_path / "big/disk")
    (tmp_path / "here/photos").symlink_to(image_folder)
    call("create_data_lists", "--train-folders", "photos", "--min-size", 32, "--validation-images", 2)
    assert found_in(Path("data"), "train", "validation") == set(image_folder.iterdir())
    assert SRDataset(Path("data/train_images.json"), 32).pack is not None


def test_no_recursive_leaves_out_the_folders_within(tmp_path, junk):
    folder, good = junk
    flags = ["--no-recursive", "--min-size", 32, "--validation-images", 0, "--output-folder", tmp_path / "data"]
    call("create_data_lists", "--train-folders", folder, *flags)
    assert found_in(tmp_path / "data", "train") == {path for path in good if path.parent == folder}
    assert names_in(tmp_path / "data", "validation") == []


def test_validation_images_are_held_out_by_the_seed(tmp_path, image_folder):
    split = {}
    for name, flags in {"a": [], "again": [], "other seed": ["--seed", 1], "more": ["--validation-images", 5]}.items():
        make_lists(tmp_path / name, image_folder, *flags)
        split[name] = found_in(tmp_path / name, "train"), found_in(tmp_path / name, "validation")
        assert not split[name][0] & split[name][1] and len(split[name][0] | split[name][1]) == 12
    assert len(split["a"][1]) == 2 and len(split["more"][1]) == 5
    assert split["a"] == split["again"] and split["a"] != split["other seed"]


def test_an_image_given_twice_is_listed_once(tmp_path, image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    flags = ["--min-size", 32, "--validation-images", 4, "--output-folder", tmp_path]
    spellings = [image_folder, image_folder.name, image_folder / ".." / image_folder.name]
    call("create_data_lists", "--train-folders", *spellings, *flags)
    names = names_in(tmp_path, "train") + names_in(tmp_path, "validation")
    assert len(names) == len(set(names)) == 12  # or a validation image would be trained on under its other name


def test_no_image_is_trained_on_and_measured(tmp_path, image_folder, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    (folder / "test").mkdir()
    (folder / "00.png").rename(folder / "test/00.png")
    shutil.copy(folder / "01.png", folder / "test/renamed.png")
    shutil.copy(folder / "02.png", folder / "02 (1).png")
    (folder / "test/broken.png").symlink_to("nowhere")
    flags = ["--min-size", 32, "--validation-images", 3, "--output-folder", tmp_path / "data"]
    call("create_data_lists", "--train-folders", folder, "--test-folders", folder / "test", *flags)
    assert "4 the same, byte for byte, as another or as a test image" in capsys.readouterr().out
    used = found_in(tmp_path / "data", "train", "validation")
    assert len(used) == 10 and {path.read_bytes() for path in used} == {
        path.read_bytes() for path in image_folder.iterdir() if path.name not in ("00.png", "01.png")
    }


def test_a_link_to_the_folder_it_is_in_does_not_multiply_the_images(tmp_path, image_folder):
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    (folder / "loop").symlink_to(folder)
    make_lists(tmp_path / "data", folder)
    assert len(names_in(tmp_path / "data", "train")) == 10


def test_test_folders_of_one_name_do_not_overwrite_each_other(tmp_path, image_folder, capsys):
    for parent in ("Set5", "Set14"):
        shutil.copytree(image_folder, tmp_path / parent / "HR")
    (tmp_path / "Set14/HR/00.png").unlink()
    folders = [tmp_path / "Set5" / "HR", tmp_path / "Set14" / "HR"]
    call("create_data_lists", "--test-folders", *folders, "--output-folder", tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"Set5_test_images.json", "Set14_test_images.json"}
    assert found_in(tmp_path / "data", "Set14_test") == set(folders[1].iterdir())
    call("create_data_lists", "--test-folders", f"mine={folders[0]}", folders[1], "--output-folder", tmp_path / "by hand")
    assert {path.name for path in (tmp_path / "by hand").iterdir()} == {"mine_test_images.json", "HR_test_images.json"}
    assert found_in(tmp_path / "by hand", "mine_test") == set(folders[0].iterdir())
    for again in (folders[0], folders[0] / ".." / "HR"):
        line = refusal(capsys, "create_data_lists", "--test-folders", folders[0], again, "--output-folder", tmp_path / "data")
        assert "--test-folders" in line and "HR" in line


@pytest.mark.parametrize(
    "words, labels",
    [
        (["Set5", "Set14"], ["Set5", "Set14"]),
        (["Set5/HR", "Set14/HR"], ["Set5", "Set14"]),
        (["Set5/HR/x4", "Set14/HR/x4", "Urban100"], ["Set5", "Set14", "Urban100"]),
        (["one/2019/HR", "one/2020/HR", "two/2019/HR"], ["one_2019", "one_2020", "two_2019"]),
        (["sets/photos", "photos"], ["sets", "photos"]),  # the second is a list
        (["Set5/HR", "Set14/HR", "Set5"], ["Set5_HR", "Set14", "Set5"]),
        (["Set5/HR", "SET5/hr"], None),
        (["mine=Set5/HR", "Set14/HR"], ["mine", "HR"]),
        (["a=Set5/HR", "b=Set5/HR"], ["a", "b"]),
        (["Set5=photos", "Set5/HR", "Set14/HR"], ["Set5", "Set5_HR", "Set14"]),
        (["x=1/HR", "x=2/HR", "x=2"], ["x=1", "x=2_HR", "x=2"]),  # folders with such a name
        (["a=Set5", "A=Set14"], None),
        (["Set5/HR", "Set5/HR/"], None),
        (["sets/Set5_test_images.json", "more/Set5_test_images.json"], ["sets", "more"]),
        (["sets/Set5.json", "Set14"], ["Set5", "Set14"]),
    ],
)
def test_sets_are_called_by_the_part_of_the_path_that_differs(tmp_path, monkeypatch, words, labels):
    monkeypatch.chdir(tmp_path)
    for word in words:
        folder = Path(word if word.startswith("x=") else word.split("=")[-1])
        if "/" in word and folder.suffix != ".json" or word == "x=2":
            folder.mkdir(parents=True, exist_ok=True)
    if labels is None:
        with pytest.raises(datasets.UserError, match="--test-sets: "):
            named_sets(words, "--test-sets")
    else:
        named = named_sets(words, "--test-sets")
        assert list(named) == labels
        folders = [word if word.startswith("x=") else word.split("=")[-1] for word in words]
        assert [named[label] for label in labels] == folders


# What lies beside HR images


def write_pictures(folder, layout, photographs):
    """Write pictures by their names: of each name whose number it is (0, 1, ...), photograph that, as its way says.

    A way is HR, /4 for a small copy, ~4 for that in the old size, *2 for an enlargement.
    """
    for name, (number, way) in layout.items():
        img = photographs[number]
        if way[0] in "/~":
            img = downscale(crop_to_multiple(img, int(way[1])), int(way[1]))
        if way[0] in "~*":
            img = enlarge(img, int(way[1]))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(img).save(folder / name)


# Layouts as public data sets have them; HR marks what is to be kept.
SETS = {
    "SelfExSR": {
        f"image_SRF_4/img_{i:03d}_SRF_4_{kind}.png": (i, way)
        for i in range(3)
        for kind, way in {
            "HR": "HR",
            "LR": "/4",
            "bicubic": "~4",
            "SRCNN": "~4",
            "A+": "~4",
            "Kim": "~4",
            "nearest": "~4",
        }.items()
    },
    "benchmark": {"HR/baby.png": (0, "HR"), "LR_bicubic/X4/babyx4.png": (0, "/4"), "LR_bicubic/X2/babyx2.png": (0, "/2")},
    "DIV2K": {
        f"{folder}/{i:04d}{end}.png": (i, way)
        for i in range(3)
        for folder, end, way in [
            ("DIV2K_train_HR", "", "HR"),
            ("DIV2K_train_LR_bicubic/X4", "x4", "/4"),
            ("DIV2K_train_LR_wild", "x4w1", "/4"),
            ("DIV2K_train_LR_x8", "x8", "/8"),
        ]
    },
    "only LR of some": {"DIV2K_valid_LR_unknown/X3/0801x3.png": (1, "/3"), "DIV2K_train_HR/0001.png": (0, "HR")},
    "BasicSR": {"GTmod12/head.png": (0, "HR"), "LRbicx4/head.png": (0, "/4"), "LRbicx2/head.png": (0, "/2")},
    "by scale": {
        "X4/HR/head.png": (0, "HR"),
        "X4/LR/head.png": (0, "/4"),
        "X2/HR/bird.png": (1, "HR"),
        "X2/LR/bird.png": (1, "/2"),
    },
    "RealSR": {
        "Canon_001_HR.png": (0, "HR"),
        "Canon_001_LR4.png": (0, "~4"),
        "Nikon_HR_x2.png": (1, "HR"),
        "Nikon_LR_x2.png": (1, "/2"),
    },
    "of one folder": {
        "a.png": (0, "HR"),
        "a_lr.png": (0, "/4"),
        "A x3.png": (0, "/3"),
        "b.png": (1, "HR"),
        "b (bicubic).png": (1, "~4"),
    },
    "no gap": {"babyHR.png": (0, "HR"), "babyLR.png": (0, "/4")},
    "folders without a word": {
        "train/a.png": (0, "HR"),
        "input/a.png": (0, "/4"),
        "train/b.png": (1, "HR"),
        "thumbs/B.png": (1, "/8"),
    },
    "a folder is proved by one": {"set/a.png": (0, "HR"), "LR/a.png": (0, "/4"), "LR/of_no_other.png": (1, "/4")},
    "results of test.py": {"a.png": (0, "HR"), "a_x2.png": (0, "*2"), "b.png": (1, "HR"), "b_srgan_x4.png": (1, "~4")},
}


@pytest.mark.parametrize("name", SETS)
def test_what_is_made_of_hr_images_is_left_out_and_counted(tmp_path, photographs, capsys, name):
    write_pictures(tmp_path / "set", SETS[name], photographs)
    call("create_data_lists", "--test-folders", tmp_path / "set", "--output-folder", tmp_path / "data")
    hr = {tmp_path / "set" / path for path, (_, way) in SETS[name].items() if way == "HR"}
    assert found_in(tmp_path / "data", "set_test") == hr
    line = capsys.readouterr().out.splitlines()[0]
    assert sum(map(int, re.findall(r"left out: (\d+)", line))) == len(SETS[name]) - len(hr), line
    call(
        "create_data_lists",
        "--train-folders",
        tmp_path / "set",
        "--output-folder",
        tmp_path,
        "--min-size=1",
        "--validation-images=0",
    )
    assert found_in(tmp_path, "train") == hr


def test_the_reasons_are_told(tmp_path, photographs, capsys):
    layout = SETS["SelfExSR"] | {"image_SRF_4/more.png": (4, "HR"), "small/more.png": (4, "/2"), "more_x4.png": (4, "/4")}
    write_pictures(tmp_path / "set", layout, photographs)
    call("create_data_lists", "--test-folders", tmp_path / "set", "--output-folder", tmp_path / "data")
    line = capsys.readouterr().out.splitlines()[0]
    assert "set: 4 images;" in line and "3 LR by name or folder" in line and "1 scaled by name or folder" in line
    assert "15 results by name or folder" in line and "1 small copies of a picture of the same name" in line


# Pictures that are no copies, whatever they are called.
LEGITIMATE = {
    "alone": {"x4.png": (0, "HR")},
    "cars": {
        "bmw.png": (0, "HR"),
        "bmw x4.png": (3, "/2"),
        "bmw x2.png": (6, "/4"),
        "cx4 car.png": (9, "HR"),
        "box4.png": (1, "HR"),
    },
    "models of cars": {"X2.png": (0, "HR"), "X4.png": (3, "/2"), "LR2/1.png": (6, "HR"), "LR4/1.png": (9, "/2")},
    "sizes": {"xl/a.png": (0, "HR"), "l/a.png": (3, "HR"), "x2 large/b.png": (6, "/2"), "lr.png": (9, "HR")},
    "two cameras": {"phone/IMG_0001.png": (0, "HR"), "camera/IMG_0001.png": (3, "/2"), "camera/IMG_0002.png": (6, "HR")},
    "Lightroom": {"LR/dawn.png": (0, "HR"), "LR/dusk.png": (3, "/2"), "others/noon.png": (6, "HR")},
    "words": {
        "the nearest.png": (0, "HR"),
        "the.png": (3, "HR"),
        "left_lr.png": (6, "HR"),
        "LRRH.png": (9, "HR"),
        "floor.png": (1, "HR"),
    },
    "frames": {f"{clip}/{i:04d}.png": (clip * 3 + i, "HR") for clip in range(3) for i in range(3)},
    "numbers": {"photo_HR.png": (0, "HR"), "photo_2.png": (3, "HR"), "photo_3.png": (6, "HR")},
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_pictures_that_are_no_copies_are_kept(tmp_path, photographs, capsys, name):
    write_pictures(tmp_path / "set", LEGITIMATE[name], photographs)
    call("create_data_lists", "--test-folders", tmp_path / "set", "--output-folder", tmp_path / "data")
    assert found_in(tmp_path / "data", "set_test") == {tmp_path / "set" / path for path in LEGITIMATE[name]}
    assert "left out" not in capsys.readouterr().out


def test_a_folder_given_itself_is_taken_whatever_it_is_called_and_doubts_are_told(tmp_path, photographs, capsys):
    write_pictures(tmp_path, {f"DIV2K_train_LR_bicubic/X4/000{i}x4.png": (i, "HR") for i in range(3)}, photographs)
    folder = tmp_path / "DIV2K_train_LR_bicubic" / "X4"
    line = refusal(capsys, "create_data_lists", "--test-folders", tmp_path, "--output-folder", tmp_path / "data")
    assert "give the very folder" in line
    call("create_data_lists", "--test-folders", folder, "--output-folder", tmp_path / "data")
    assert len(names_in(tmp_path / "data", "X4_test")) == 3
    assert "the names say LR, x4 or the like: 3" in capsys.readouterr().out
    write_pictures(tmp_path, {f"HR/000{i}.png": (i, "*4") for i in range(3)}, photographs)
    call("create_data_lists", "--test-folders", folder, tmp_path / "HR", "--output-folder", tmp_path / "data")
    flags = ["--output-folder", tmp_path / "data", "--validation-images", 0, "--min-size", 32]
    call("create_data_lists", "--train-folders", folder, tmp_path / "HR", *flags)
    assert found_in(tmp_path / "data", "train") == set((tmp_path / "HR").iterdir())


@pytest.mark.parametrize(
    "path, folder, name",
    [
        (r"D:\photos\a.jpg", r"C:\srgan\data", "D:/photos/a.jpg"),
        (r"\\server\share\photos\a.jpg", r"C:\srgan\data", "//server/share/photos/a.jpg"),
        (r"\\server\other\a.jpg", r"\\server\share\data", "//server/other/a.jpg"),
        (r"C:\photos\a.jpg", r"C:\srgan\data", "../../photos/a.jpg"),
        (r"c:\srgan\a b.jpg", r"C:\srgan\data", "../a b.jpg"),
    ],
)
def test_photographs_on_another_drive_are_listed_by_their_whole_path(path, folder, name):
    assert name_in_list(path, folder, ntpath) == name
    assert ntpath.normpath(ntpath.join(folder, name)).casefold() == path.casefold()  # as the list is read


def test_a_list_may_hold_whole_paths(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr(os.path, "relpath", refuse_to_be_relative)
    make_lists(tmp_path, image_folder, "--pack", "on")
    names = names_in(tmp_path, "train") + names_in(tmp_path, "validation")
    assert {Path(name) for name in names} == set(image_folder.iterdir())
    dataset = SRDataset(tmp_path / "train_images.json", 32)
    assert dataset.pack is not None and dataset[0].shape == (3, 32, 32)


def refuse_to_be_relative(path, start=None):
    raise ValueError("path is on mount 'D:', start on mount 'C:'")


def test_places_of_images_on_several_drives():
    paths = [PureWindowsPath(path) for path in (r"C:\sets\a.png", r"D:\sets\a.png", r"\\server\share\b.png")]
    assert datasets.places_below(paths) == [Path("C/sets/a.png"), Path("D/sets/a.png"), Path("server_share/b.png")]
    paths = [PureWindowsPath(path) for path in (r"D:\sets\a\x.png", r"D:\sets\b\x.png")]
    assert datasets.places_below(paths) == [Path("a/x.png"), Path("b/x.png")]
    assert datasets.places_below([Path("/sets/a/x.png"), Path("/y.png")]) == [Path("sets/a/x.png"), Path("y.png")]
    assert datasets.places_below([Path("/sets/a/x.png")]) == [Path("x.png")]


@pytest.mark.parametrize("pack", ["on", "off"])
def test_a_data_folder_may_be_moved(tmp_path, image_folder, pack):
    before, after = tmp_path / "before", tmp_path / "elsewhere" / "after"
    shutil.copytree(image_folder, before / "photos")
    make_lists(before, before / "photos", "--pack", pack)
    expected = [SRDataset(before / "train_images.json", 32)[k] for k in range(8)]
    after.parent.mkdir()
    before.rename(after)
    moved = SRDataset(after / "train_images.json", 32)
    assert (moved.pack is not None) == (pack == "on")
    assert all((moved[k] == crop).all() for k, crop in enumerate(expected))
    assert all(path.is_relative_to(after) and path.exists() for path in moved.paths)


def test_pack_follows_its_limit_and_an_old_one_goes(tmp_path, image_folder, capsys):
    pack, index = tmp_path / "train_images.pack", tmp_path / "train_images.pack.json"
    make_lists(tmp_path, image_folder)
    assert pack.exists() and index.exists()
    sizes = [Image.open(path).size for path in read_list(tmp_path / "train_images.json")]
    assert pack.stat().st_size == sum(3 * width * height for width, height in sizes)
    make_lists(tmp_path, image_folder, "--pack-limit", 1e-6)
    assert not pack.exists() and not index.exists()
    assert "no pack" in capsys.readouterr().out
    make_lists(tmp_path, image_folder, "--pack-limit", 1e-6, "--pack", "on")
    assert pack.exists() and index.exists()


def test_folders_without_an_image_are_refused(tmp_path, image_folder, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "text.png").write_text("no image")
    for which in ("--train-folders", "--test-folders"):
        for folder in ("missing", "empty", "junk"):
            line = refusal(capsys, "create_data_lists", which, tmp_path / folder, "--output-folder", tmp_path / "data")
            assert folder in line
    flags = ["--output-folder", tmp_path / "data", "--min-size", 999]
    line = refusal(capsys, "create_data_lists", "--train-folders", image_folder, *flags)
    assert image_folder.name in line
    assert list((tmp_path / "data").iterdir()) == []


def test_arguments_that_make_no_sense_are_refused(tmp_path, image_folder, capsys):
    to = ["--output-folder", tmp_path / "data"]
    assert "--train-folders" in refusal(capsys, "create_data_lists", *to)
    for flags in (["--validation-images", -1], ["--min-size", 0], ["--pack", "maybe"], ["--pack-limit", "nan"]):
        assert flags[0] in refusal(capsys, "create_data_lists", "--train-folders", image_folder, *to, *flags)
    assert not (tmp_path / "data").exists()
    flags = ["--min-size", 32, "--validation-images", 12]
    line = refusal(capsys, "create_data_lists", "--train-folders", image_folder, *to, *flags)
    assert "--validation-images 12" in line
    (tmp_path / "file").write_text("")
    line = refusal(capsys, "create_data_lists", "--train-folders", image_folder, "--output-folder", tmp_path / "file")
    assert "--output-folder" in line


# Files of 16 bits that use a part of them


def write_of_12_bits(folder, photographs):
    """The photographs at 12 bits, in files of 16 that declare nothing: gray and colours, PNG and TIFF; returns the names."""
    tifffile = pytest.importorskip("tifffile")
    folder.mkdir()
    for i, photograph in enumerate(photographs):
        pixels = photograph.astype(np.uint16) * 16
        if i % 4 < 2:
            pixels = pixels[..., :1]
        if i % 2:
            tifffile.imwrite(folder / f"{i:02d}.tif", pixels.squeeze(), photometric="rgb" if i % 4 == 3 else "minisblack")
        else:
            with open(folder / f"{i:02d}.png", "wb") as file:
                deep._write_png(file, pixels, {})


def test_a_white_that_is_given_is_kept_in_the_lists_for_all_that_read_them(tmp_path, photographs, capsys):
    folder = tmp_path / "scans"
    write_of_12_bits(folder, photographs[:4])
    make_lists(tmp_path / "pack", folder, "--white", 4080, "--pack", "on")
    make_lists(tmp_path / "files", folder, "--white", 4080, "--pack", "off")
    assert "nearly black" not in capsys.readouterr().out
    assert all(
        read_list(tmp_path / f"pack/{which}_images.json").white == 4080 for which in ("train", "validation", "scans_test")
    )
    by_number = dict(zip(sorted(path.stem for path in folder.iterdir()), photographs))
    for name in ("pack", "files"):
        dataset = SRDataset(tmp_path / name / "train_images.json", 32)
        for number, path in enumerate(dataset.paths):
            expected = by_number[path.stem] if int(path.stem) % 4 > 1 else by_number[path.stem][..., :1]
            assert np.array_equal(dataset.read(number), np.broadcast_to(expected, (*expected.shape[:2], 3)))
    for name, _, hr_img in TestPairs(images_of_set("scans", tmp_path / "pack"), 4):
        assert np.array_equal(hr_img[..., 0], crop_to_multiple(by_number[name], 4)[..., 0])
    flags = ["--data-folder", tmp_path / "pack", "--crop-size", 32, "--validate-on", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_srresnet.py", *map(str, flags)])
        _, validation = load_data(train_srresnet.parse_arguments())
    assert len(validation) == 4 and all(
        np.array_equal(img[..., 0], by_number[name][: len(img), : img.shape[1], 0]) for name, _, img in validation
    )
    list_file = tmp_path / "files/train_images.json"
    before = SRDataset(list_file, 32).fingerprint
    list_file.write_text(json.dumps(names_in(tmp_path / "files", "train")["images"]))
    assert read_list(list_file).white is None
    assert before != SRDataset(list_file, 32).fingerprint  # so no run is resumed on the other


def test_a_pack_of_another_white_is_refused(tmp_path, photographs):
    write_of_12_bits(tmp_path / "scans", photographs[:4])
    make_lists(tmp_path, tmp_path / "scans", "--white", 4095, "--pack", "on")
    list_file = tmp_path / "train_images.json"
    for white in (1023, None):
        content = json.loads(list_file.read_text())
        list_file.write_text(json.dumps(content | {"white": white} if white else content["images"]))
        with pytest.raises(datasets.UserError, match="another list"):
            SRDataset(list_file, 32)


@pytest.mark.parametrize(
    "content", [{"white": 4095}, {"white": "4095", "images": ["a.png"]}, {"images": "a.png"}, {"images": [], "x": 1}]
)
def test_a_list_with_something_else_in_it_is_refused(tmp_path, content):
    (tmp_path / "train_images.json").write_text(json.dumps(content))
    with pytest.raises(datasets.UserError, match="not a list of images; make it anew"):
        read_list(tmp_path / "train_images.json")


def test_eval_names_the_files_of_a_part_of_16_bits_and_takes_their_white(work, photographs, capsys):
    write_of_12_bits(work / "scans", photographs[:5])
    Image.fromarray(photographs[6]).save(work / "scans/of 8 bits.png")
    Image.fromarray(photographs[6][..., 0].astype(np.uint16) * 257).save(work / "scans/of 16.png")

    def measured(*flags):
        call("eval", "--device", "cpu", *flags)
        told = [line for line in capsys.readouterr().err.splitlines() if "warning: scans: " in line]
        return [entry["psnr"] for entries in results_of_eval().values() for entry in entries], told

    dark, told = measured("--test-sets", "scans")
    assert len(told) == 1 and "5 in 16-bit files" in told[0] and "and 2 more" in told[0] and "--white 4095" in told[0]
    assert all(f"0{i}." in told[0] for i in range(3)) and "of 8 bits" not in told[0] and "of 16.png" not in told[0]
    light, told = measured("--test-sets", "scans", "--white", 4080)
    assert len(told) == 1 and "1 have values above --white 4080, up to 65535" in told[0] and "of 16.png" in told[0]
    (work / "scans/of 16.png").unlink()
    light, told = measured("--test-sets", "scans", "--white", 4080)
    assert not told and light[5:] == dark[6:] and all(a < b for a, b in zip(light[:5], dark[:5], strict=True))
    call("create_data_lists", "--test-folders", "scans", "--white", 2000)
    assert "5 have values above --white 2000, up to 4080" in capsys.readouterr().out
    call("create_data_lists", "--test-folders", "scans", "--white", 4080)
    assert measured("--test-sets", "scans_test", "--data-folder", "data")[0] == light
    assert measured("--test-sets", "data/scans_test_images.json", "--white", 4080) == (light, [])
    line = refusal(capsys, "eval", "--test-sets", "data/scans_test_images.json", "--white", 1023, "--device", "cpu")
    assert "--white 1023" in line and "--white 4080" in line


def test_finished_pictures_are_read_by_the_white_of_their_hr_images(work, photographs, capsys):
    write_of_12_bits(work / "scans", photographs[:4])
    shutil.copytree("scans", "mine")
    for sets in (["scans", "--white", 4080], ["scans_test"]):
        call("create_data_lists", "--test-folders", "scans", "--white", 4080)
        call("eval", "--device", "cpu", "--test-sets", *sets, "--results", "mine")
        told = capsys.readouterr()
        assert "| mine | inf / 1.0000 |" in told.out and "warning" not in told.err
    Image.fromarray(photographs[0][..., 0].astype(np.uint16) * 257).save(work / "mine/00.png")
    call("eval", "--device", "cpu", "--test-sets", "scans_test", "--results", "mine")
    assert "1 have values above --white 4080" in capsys.readouterr().err


def results_of_eval():
    return json.loads(Path("results/eval/metrics.json").read_text())["bicubic"]


def test_where_only_8_bits_can_be_read_a_white_is_refused(tmp_path, photographs):
    """16 bits under a compression that tifffile leaves to another package, or colours of another kind."""
    tifffile = pytest.importorskip("tifffile")
    pixels = photographs[0].astype(np.uint16) * 16
    extra = np.concatenate([pixels, pixels[..., :1]], axis=2)
    tifffile.imwrite(tmp_path / "a.tif", extra, photometric="rgb", extrasamples=["assocalpha"])
    assert read_image(tmp_path / "a.tif").shape == pixels.shape
    with pytest.raises(datasets.ImageError, match="a.tif.*--white"):
        read_image(tmp_path / "a.tif", 4095)


@pytest.mark.parametrize("name", ["validation", "Train"])
def test_a_test_set_is_not_called_as_a_list_of_training(name, tmp_path, photographs, capsys):
    """Or eval.py would measure that list under the name of the test set."""
    (tmp_path / name).mkdir()
    Image.fromarray(photographs[0]).save(tmp_path / name / "a.png")
    flags = ["--output-folder", tmp_path / "data", "--test-folders"]
    assert f"give NAME={tmp_path / name}" in refusal(capsys, "create_data_lists", *flags, tmp_path / name)
    call("create_data_lists", *flags, f"held_out={tmp_path / name}")
    assert images_of_set("held_out", tmp_path / "data")
