"""The scripts as commands: help, dry runs, and one line with exit status 2 for whatever a user can get wrong."""

import argparse
import csv
import importlib
import json
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, call, environment, one_line, refusal
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

import utils

SCRIPTS = ["create_data_lists", "train_srresnet", "train_srgan", "train_distilled", "eval", "test"]
TRAINING = ["train_srresnet", "train_srgan"]


def start(folder, *command, **more):
    """A process of its own; those of a test run side by side, since each takes a while to start."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, env=environment() | more, **pipes)


def test_help_answers_without_importing_torch(tmp_path):
    processes = {script: start(tmp_path, "-X", "importtime", ROOT / f"{script}.py", "--help") for script in SCRIPTS}
    for script, process in processes.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert f"python {script}.py" in out  # an example to copy
        imported = set(re.findall(r"\| +(\w+)", err))
        assert "argparse" in imported and not imported & {"torch", "torchvision"}
        flags = re.findall(r"^  (--[\w-]+)", out, re.MULTILINE)
        assert flags and all(re.fullmatch("--[a-z0-9-]+", flag) for flag in flags)
        assert "(default: " in out and not re.search(r"\(default: (None|False|\[\])\)", out)


def test_bad_flags_end_with_status_2_and_one_line(tmp_path):
    processes = {script: start(tmp_path, ROOT / f"{script}.py", "--nonsense") for script in SCRIPTS[:5]}
    processes["train_srresnet --steps"] = start(tmp_path, ROOT / "train_srresnet.py", "--steps", "many")
    for process in processes.values():
        out, err = process.communicate()
        assert process.returncode == 2 and out == ""
        assert "--" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_list_ends_with_status_2_and_one_line(tmp_path):
    # One script stands for all; the others are tested within this process.
    process = start(tmp_path, ROOT / "train_srresnet.py")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert "no such list" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_libraries_are_imported_is_no_fault(tmp_path):
    commands = {"numpy": ["train_srgan.py"], "torch": ["test.py", "photograph.jpg"]}
    for name in commands:
        (tmp_path / name).mkdir()
        interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
        (tmp_path / name / f"{name}.py").write_text(interrupt)
    for process in [
        start(tmp_path, ROOT / script, *flags, PYTHONPATH=str(tmp_path / name)) for name, (script, *flags) in commands.items()
    ]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (-signal.SIGINT, "", "interrupted\n")


@pytest.mark.parametrize("script", TRAINING)
@pytest.mark.parametrize(
    "flags",
    [
        ["--scale", 5],
        ["--steps", 0],
        ["--seed", 2**63],
        ["--batch-size", "two"],
        ["--learning-rate", -1],
        ["--learning-rate", "nan"],
        ["--steps", "9" * 400],
        ["--ema-decay", 1.5],
        ["--crop-size", 8],
        ["--crop-size", 98],  # no multiple of the scale
        ["--precision", "fp8"],
        ["--schedule", "linear"],
        ["--workers", -1],
        ["--device", "tpu"],
        ["--device", "cuda:99"],
    ],
)
def test_bad_values_are_refused(work, lists, capsys, script, flags):
    assert flags[0] in refusal(capsys, script, "--data-folder", lists["off"], *flags)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("script", TRAINING)
def test_lists_that_are_missing_empty_or_broken_are_refused(work, lists, capsys, script):
    for content in (None, "[]", "{", "7"):
        folder = work / f"data {content and len(content)}{content and content[0]}"
        folder.mkdir()
        if content is not None:
            (folder / "train_images.json").write_text(content)
        line = refusal(capsys, script, "--data-folder", folder, "--device", "cpu")
        assert "train_images.json" in line and "create_data_lists.py" in line
        (folder / "train_images.json").write_text((lists["off"] / "train_images.json").read_text())
        assert "validation" in refusal(capsys, script, "--data-folder", folder, "--device", "cpu")
        line = refusal(capsys, script, "--data-folder", folder, "--device", "cpu", "--validate-on", "Set99")
        assert "Set99" in line
    assert {path.name.split()[0] for path in work.iterdir()} == {"data"}  # no folder of a run


def test_vgg_weights_that_are_not_there_are_refused(work, lists, vgg_file, capsys):
    flags = ["--data-folder", lists["off"], "--device", "cpu", "--init", "none"]
    line = refusal(capsys, "train_srgan", *flags, "--vgg-weights", work / "nowhere.pth")
    assert "--vgg-weights" in line and "nowhere.pth" in line
    (work / "text.pth").write_text("no weights\n")
    for name in ("text.pth", vgg_file):  # the second holds fewer layers than VGG54 needs
        line = refusal(capsys, "train_srgan", *flags, "--vgg-weights", name)
        assert "--vgg-weights" in line and str(name) in line
    assert "--vgg-layer" in refusal(capsys, "train_srgan", *flags, "--vgg-weights", vgg_file, "--vgg-layer", 13)
    (work / "text.pth").unlink()
    assert list(work.iterdir()) == []


def test_the_excess_term_needs_a_network_of_stage_1(work, lists, vgg_file, capsys):
    flags = ["--data-folder", lists["off"], "--vgg-weights", vgg_file, "--vgg-layer", 11, "--init", "none"]
    assert "--faithful" in refusal(capsys, "train_srgan", *flags, "--excess-weight", 1)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("init", ["nowhere.pth", "text.pth"])
def test_a_start_that_is_none_is_refused(work, lists, vgg_file, capsys, init):
    (work / "text.pth").write_text("no weights\n")
    flags = ["--data-folder", lists["off"], "--device", "cpu", "--vgg-weights", vgg_file, "--vgg-layer", 22]
    assert init in refusal(capsys, "train_srgan", *flags, "--init", init)
    assert [path.name for path in work.iterdir()] == ["text.pth"]


@pytest.mark.parametrize("script", [*TRAINING, "srcnn"])
def test_a_dry_run_does_everything_once_and_can_be_repeated(work, lists, vgg_file, capsys, script):
    flags = ["--dry-run", "--data-folder", lists["on"], "--device", "cpu", "--precision", "fp32", "--workers", 0]
    flags += ["--crop-size", 32, "--batch-size", 2, "--blocks", 1, "--channels", 8]
    if script == "train_srgan":
        flags += ["--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
    if script == "srcnn":
        script, flags = "train_srresnet", [*flags, "--arch", "srcnn"]
    for _ in range(2):
        call(script, *flags)
        assert {"last.pth", "best.pth", "step_00000002.pth"} == {path.name for path in (work / "checkpoints/dry_run").iterdir()}
        assert "done: 2 steps" in capsys.readouterr().out
    results = work / "results/dry_run"
    assert json.loads((results / "config.json").read_text())["steps"] == 2
    rows = list(csv.DictReader((results / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2"] and float(rows[1]["validation/psnr"]) > 0
    assert Image.open(results / "samples/step_00000002.png").size[0] > 100
    assert list(results.glob("events*"))
    assert {path.name for path in work.iterdir()} == {"checkpoints", "results"}


# Flags and torchrun, which reads the whole line before the script does


def actions_of(script, monkeypatch):
    """The actions of the parser of a script."""
    parsers = []

    def stop(parser, words=None):
        parsers.append(parser)
        raise StopIteration

    with monkeypatch.context() as patch:
        patch.setattr(utils.ArgumentParser, "parse_args", stop)
        with pytest.raises(StopIteration):
            importlib.import_module(script).parse_arguments()
    return parsers[0]._actions


@pytest.mark.parametrize("script", [*SCRIPTS, "export"])
def test_no_flag_is_one_of_torchrun_or_begins_one(script, monkeypatch):
    theirs = [flag for flag in torchrun_parser()._option_string_actions if flag not in ("-h", "--help")]
    ours = [
        flag for action in actions_of(script, monkeypatch) if action.help != argparse.SUPPRESS for flag in action.option_strings
    ]
    ours = set(ours) - {"-h", "--help"}
    assert len(ours) > 2
    assert not [(flag, other) for flag in ours for other in theirs if other.startswith(flag)]


@pytest.mark.parametrize("script", TRAINING)
def test_torchrun_hands_every_flag_on(script, monkeypatch):
    for action in actions_of(script, monkeypatch):
        flags = [flag for flag in action.option_strings if action.help != argparse.SUPPRESS and flag not in ("-h", "--help")]
        for flag in flags:
            launch = torchrun_parser().parse_args(["--nproc-per-node=2", f"{script}.py", flag, "x"])
            assert launch.training_script_args == [flag, "x"]
    with pytest.raises(SystemExit):  # or the old spelling need not be hidden
        torchrun_parser().parse_args(["--nproc-per-node=2", f"{script}.py", "--run", "x"])


@pytest.mark.parametrize("script", TRAINING)
def test_the_old_spelling_of_name_still_works(script, capsys):
    parse = importlib.import_module(script).parse_arguments
    assert parse([]).name is None and not hasattr(parse([]), "run")
    for words in (["--run", "mine"], ["--run=mine"], ["--name", "mine"], ["--run", "other", "--name", "mine"]):
        assert parse(words).name == "mine"
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "--name" in (shown := capsys.readouterr().out) and "--run" not in shown
