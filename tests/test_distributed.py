"""Two processes under torchrun train what one does, and stop together: with Gloo, on the CPU."""

import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    PATIENCE,
    ROOT,
    SMALL,
    SMALL_GAN,
    STEPS,
    TEMPORARY,
    Script,
    at_save,
    free_port,
    limit_file_size,
    make_lists,
    make_pictures,
    make_vgg,
    pause_after,
    run,
)

# With the batch statistics of each half batch there would be nothing to compare.
COMMON = [*SMALL, "--batch-size=4", "--save-every=5", "--schedule=constant"]


def start_two(script, arguments, folder, second_folder=None, trouble=None):
    """The two processes that torchrun would start."""
    port, processes = free_port(), []
    for rank in (0, 1):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        where = second_folder if rank and second_folder else folder
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a name of the machine that nobody resolves is no reason to fail
        processes.append(Script(script, arguments, where, None if rank else trouble, **environment))
    return processes


def run_two(script, arguments, folder, second_folder=None, trouble=None):
    """Run two processes to their end: their Results."""
    processes = start_two(script, arguments, folder, second_folder, trouble)
    try:
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()


def checkpoint(folder):
    return torch.load(next(folder.glob("checkpoints/*/last.pth")), weights_only=True)


def log(folder):
    with open(next(folder.glob("results/*/log.csv")), newline="") as file:
        return list(csv.DictReader(file))


def assert_close(ours, theirs):
    """The same weights, to what rounding does to Adam's steps, which are of about 1e-4 each."""
    assert ours["step"] == theirs["step"] == STEPS
    for part in {"weights", "ema", "discriminator"} & theirs.keys():
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=2e-5)


def assert_same_log(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for key, value in their.items():
            assert (our[key] == "") == (value == "")
            if value and not key.startswith("share_"):  # a mean of ratios, each of the images of one process
                assert float(our[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), (their["step"], key)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two training images and three validation images, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("lists")
    paths = sorted(make_pictures(folder / "pictures", ("astronaut", "chelsea", "coffee", "rocket", "color")).iterdir())
    return make_lists(folder / "data", paths[:2], paths[2:])


@pytest.fixture(scope="module")
def srresnet(data, tmp_path_factory):
    """A run of stage 1 in one process: its script, arguments and folder."""
    return alone("train_srresnet", [*COMMON, "--freeze-bn", "--data-folder", data], tmp_path_factory.mktemp("srresnet"))


@pytest.fixture(scope="module")
def srgan(data, tmp_path_factory):
    """The same of stage 2."""
    folder = tmp_path_factory.mktemp("srgan")
    files = ["--init", "none", "--vgg-weights", make_vgg(folder / "vgg.pth")]
    return alone("train_srgan", [*COMMON, "--freeze-bn=both", *SMALL_GAN, *files, "--data-folder", data], folder)


def alone(script, arguments, folder):
    result = run(script, arguments, folder)
    assert result.status == 0, result
    return SimpleNamespace(script=script, arguments=arguments, folder=folder)


@pytest.fixture(params=["srresnet", "srgan"])
def stage(request):
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------------------------------------------------------------
# The same training
# ---------------------------------------------------------------------------------------------------------------------


def test_two_processes_train_what_one_does_and_the_first_alone_writes(stage, tmp_path):
    first, second = run_two(stage.script, stage.arguments, tmp_path / "first", tmp_path / "second")
    assert first.status == second.status == 0, (first, second)
    assert_close(checkpoint(tmp_path / "first"), checkpoint(stage.folder))
    assert_same_log(log(tmp_path / "first"), log(stage.folder))
    assert second.out == second.err == first.err == ""
    assert sorted(path.suffix for path in (tmp_path / "second").rglob("*")) == [".stderr", ".stdout"]  # the test's own


def test_a_run_goes_on_with_another_number_of_processes(stage, tmp_path):
    half, two_first = [*stage.arguments, "--steps=10"], stage.script == "train_srresnet"
    results = run_two(stage.script, half, tmp_path) if two_first else [run(stage.script, half, tmp_path)]
    whole = [*stage.arguments, "--resume"]
    results += [run(stage.script, whole, tmp_path)] if two_first else run_two(stage.script, whole, tmp_path)
    assert [result.status for result in results] == [0, 0, 0], results
    assert_close(checkpoint(tmp_path), checkpoint(stage.folder))


def test_two_processes_measure_what_one_does(srresnet, data, tmp_path):
    weights = next(srresnet.folder.glob("checkpoints/*/best.pth"))
    arguments = ["--weights", weights, "--test-sets", data / "validation_images.json", "--device=cpu", "--precision=fp32"]
    alone = run("eval", arguments, tmp_path / "one")
    first, second = run_two("eval", arguments, tmp_path / "first", tmp_path / "second")
    assert alone.status == first.status == second.status == 0, (alone, first, second)
    assert alone.out == first.out and second.out == ""
    figures = [json.loads((tmp_path / name / "results/eval/metrics.json").read_text()) for name in ("one", "first")]
    assert figures[0] == figures[1] and not (tmp_path / "second/results").exists()


def test_two_processes_share_out_the_files_of_a_folder(srresnet, tmp_path):
    weights = next(srresnet.folder.glob("checkpoints/*/best.pth"))
    make_pictures(tmp_path / "in", size=(24, 20))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.png").write_text("no picture")
    (tmp_path / "in/notes.txt").write_text("no picture either")
    arguments = ["in", "--weights", weights, "--device=cpu", "--precision=fp32"]
    alone = run("test", arguments, tmp_path / "one")
    first, second = run_two("test", arguments, tmp_path / "two")
    assert alone.status == first.status == second.status == 2, (alone, first, second)
    lines = [re.sub(r"inference .* s", "", line) for line in (first.out + second.out).splitlines()]
    assert sorted(lines) == sorted(re.sub(r"inference .* s", "", line) for line in alone.out.splitlines())  # nothing twice
    assert "4 of 5 files upscaled" in first.out and "broken.png" in first.err + second.err
    results = {path.name: path.read_bytes() for path in (tmp_path / "one/results/test").iterdir()}
    assert results == {path.name: path.read_bytes() for path in (tmp_path / "two/results/test").iterdir()}
    assert len(results) == 4
    again = run_two("test", [*arguments, "--skip-existing"], tmp_path / "two")
    assert "0 of 5 files upscaled" in again[0].out and "4 skipped" in again[0].out and not again[1].out


def test_a_dry_run_of_two_processes_is_repeatable(srresnet, tmp_path):
    for _ in range(2):
        results = run_two(srresnet.script, [*srresnet.arguments, "--dry-run"], tmp_path)
        assert [result.status for result in results] == [0, 0], results


def test_torchrun_itself(srresnet, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [
        f"--master-port={free_port()}",
        ROOT / "train_srresnet.py",
        *srresnet.arguments,
        "--steps=2",
        "--name",
        "by_torchrun",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "done: 2 steps" in done.stdout, done.stdout + done.stderr
    assert checkpoint(tmp_path)["step"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Trouble
# ---------------------------------------------------------------------------------------------------------------------


def steps_saved(folder):
    return [int(path.stem[-8:]) for path in sorted(folder.glob("checkpoints/*/step_*.pth"))]


def assert_clear(result):
    """The process failed and said why, without a traceback. (Gloo may have had its say before.)"""
    assert result.status > 0 and "Traceback" not in result.err, result
    assert result.err.splitlines()[-1].startswith("error: "), result


def test_a_process_that_dies_ends_the_other_which_says_so(stage, tmp_path):
    first, second = start_two(stage.script, [*stage.arguments, "--steps=100000"], tmp_path)
    assert first.wait_until(lambda: steps_saved(tmp_path)[-1:] >= [10])
    second.send(signal.SIGKILL)
    result = first.wait()
    second.kill()
    assert_clear(result)
    assert "process" in result.err and "--resume" in result.err
    newest = max(tmp_path.glob("checkpoints/*/step_*.pth"))
    assert torch.load(newest, weights_only=True)["step"] == steps_saved(tmp_path)[-1] >= 10
    assert not list(tmp_path.rglob(TEMPORARY))


def test_an_error_of_one_process_ends_the_other(srresnet, tmp_path):
    full_disk = functools.partial(at_save, 10, functools.partial(limit_file_size, 20_000))
    first, second = run_two(srresnet.script, srresnet.arguments, tmp_path, trouble=full_disk)
    assert_clear(first)
    assert "cannot write" in first.err
    assert_clear(second)
    assert steps_saved(tmp_path) == [5]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_both_after_a_save(stage, tmp_path, rank):
    processes = start_two(stage.script, stage.arguments, tmp_path, trouble=functools.partial(pause_after, 8))
    assert processes[0].wait_until(lambda: processes[0].output().count("\n") == 8)
    processes[rank].send(signal.SIGTERM)
    (tmp_path / "go_on").touch()
    first, second = (process.wait() for process in processes)
    assert first.status == second.status == 0 and not first.err and not second.err, (first, second)
    stopped = steps_saved(tmp_path)[-1]
    assert 0 < stopped < STEPS and f"step {stopped};" in first.out.splitlines()[-1], first
    results = run_two(stage.script, [*stage.arguments, "--resume"], tmp_path)
    assert [result.status for result in results] == [0, 0], results
    assert_close(checkpoint(tmp_path), checkpoint(stage.folder))
    assert_same_log(log(tmp_path), log(stage.folder))


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(srresnet, tmp_path):
    for result in run_two(srresnet.script, [*srresnet.arguments, "--batch-size=3"], tmp_path):
        assert_clear(result)
        assert result.err.count("\n") == 1 and "--batch-size 3" in result.err and "2 processes" in result.err
    assert not list(tmp_path.glob("checkpoints"))
