"""create_data_lists.py on folders as people have them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import call, make_lists, refusal
from PIL import Image

import datasets
from datasets import SRDataset
from pictures.pixels import read_image


def names_in(folder, which):
    return json.loads((folder / f"{which}_images.json").read_text(encoding="utf-8"))


def found_in(folder, *which):
    return {path.resolve() for name in which for path in datasets.read_list(folder / f"{name}_images.json")}


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


def test_names_are_relative_sorted_and_readable(tmp_path, junk):
    folder, _ = junk
    call("create_data_lists", "--test-folders", folder, "--output-folder", tmp_path / "data")
    names = names_in(tmp_path / "data", "photos_test")
    assert names == sorted(names) and len(names) == len(set(names)) == 9  # a test image may be small
    assert all(name.startswith("../photos/") for name in names)
    assert "../photos/größe 象.png" in names and "../photos/with space.png" in names
    assert "größe 象.png" in (tmp_path / "data" / "photos_test_images.json").read_text(encoding="utf-8")  # not escaped
    assert all(read_image(path).shape[2] == 3 for path in datasets.read_list(tmp_path / "data/photos_test_images.json"))


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


def test_a_link_to_the_folder_it_is_in_does_not_multiply_the_images(tmp_path, image_folder):
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    (folder / "loop").symlink_to(folder)
    make_lists(tmp_path / "data", folder)
    assert len(names_in(tmp_path / "data", "train")) == 10


def test_test_folders_of_one_name_do_not_overwrite_each_other(tmp_path, image_folder, capsys):
    for parent in ("Set5", "Set14"):
        shutil.copytree(image_folder, tmp_path / parent / "HR")
    folders = [tmp_path / "Set5" / "HR", tmp_path / "Set14" / "HR"]
    line = refusal(capsys, "create_data_lists", "--test-folders", *folders, "--output-folder", tmp_path / "data")
    assert "HR" in line


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
    sizes = [Image.open(path).size for path in datasets.read_list(tmp_path / "train_images.json")]
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
