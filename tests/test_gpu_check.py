"""benchmarks/gpu_check.py says what failed. That all its checks run, continuous integration sees, which calls it on the CPU."""

import importlib
import json
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def run(gpu_check, monkeypatch, tmp_path, **checks):
    """Run it with these in place of its checks; returns its exit status and what it wrote."""
    for name, check in checks.items():
        monkeypatch.setattr(gpu_check, f"check_{name}", check)
    flags = ["--device", "cpu", "--vgg-weights", "none.pth", "--data-folder", "data", "--output", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, flags), "--only", *checks])
    status = 0
    try:
        gpu_check.main(gpu_check.parse_arguments())
    except SystemExit as stopped:
        status = stopped.code
    return status, json.loads((tmp_path / "out.json").read_text())


def good(args):
    yield "a figure", *gpu_check_level(args, 0.5)
    yield "a figure without a limit", "3 s", "-", None


def bad(args):
    yield "another figure", *gpu_check_level(args, 2.5)


def gpu_check_level(args, value):
    return sys.modules["gpu_check"].level(value, 1.0)


def broken(args):
    yield "before", "1", "-", None
    raise RuntimeError("CUDA error: an | illegal\nmemory access")


def refused(args):
    yield "before", "1", "-", None
    sys.exit(2)


@pytest.mark.parametrize("wrong, failed", [({}, None), ({"steps": bad}, "steps"), ({"speed": broken}, "speed")])
def test_the_status_names_what_failed(gpu_check, monkeypatch, tmp_path, capsys, wrong, failed):
    status, report = run(gpu_check, monkeypatch, tmp_path, **{"tiles": good, "memory": good} | wrong)
    out, err = capsys.readouterr()
    assert status == (1 if failed else 0) and ("failed: " in err) == bool(failed)
    assert not failed or err.splitlines()[-1] == f"failed: {failed}"
    lines = out.rstrip().splitlines()
    assert lines[-len(report["rows"]) - 1] == "|---|---|---|---|---|" and all(line.count("|") == 6 for line in lines[-3:])
    assert {row["holds"] for row in report["rows"] if row["check"] != failed} == {True, None}
    assert not failed or [row["holds"] for row in report["rows"] if row["check"] == failed][-1] is False


def test_a_script_that_refuses_is_a_check_that_failed_and_the_next_one_runs(gpu_check, monkeypatch, tmp_path, capsys):
    status, report = run(gpu_check, monkeypatch, tmp_path, waiting=refused, resume=broken, tiles=good)
    assert status == 1 and capsys.readouterr().err.splitlines()[-1] == "failed: waiting, resume"
    assert [row["check"] for row in report["rows"]][-1] == "tiles"


def test_the_steps_are_those_of_the_shipped_recipe(gpu_check, monkeypatch, tmp_path):
    """By the real check, which calls train_step itself: a loss that needs more than it is given would show here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--only", "steps", "--output", "out.json"])
    gpu_check.main(gpu_check.parse_arguments())
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["what"][:7] for row in rows} == {"stage 1", "stage 2", "stage 3"} and all(row["holds"] for row in rows)
