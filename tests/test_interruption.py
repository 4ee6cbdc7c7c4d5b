"""A training that is killed, stopped or out of disk space, at any moment, ends as if nothing had happened."""

import errno
import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    PATIENCE,
    SMALL,
    SMALL_GAN,
    STEPS,
    TEMPORARY,
    Script,
    at_save,
    before_file_call,
    die,
    limit_file_size,
    make_data,
    make_vgg,
    pause_after,
    run,
)

import runs
from devices import available_cores

SEED = 20_260_730
KILLS = 20


def same(a, b):
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def checkpoints(folder):
    return sorted(folder.glob("checkpoints/*/step_*.pth"))


def load(path):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop("args", None)  # --resume and --workers are among them
    return checkpoint


def assert_same_run(folder, reference):
    """The finished run in `folder` left what the uninterrupted one did, and nothing else."""
    names = [[path.name for path in checkpoints(where)] for where in (folder, reference)]
    assert names[0] == names[1]
    for name in (names[0][-1], "last.pth", "best.pth"):
        ours, theirs = (load(next(where.glob(f"checkpoints/*/{name}"))) for where in (folder, reference))
        different = [key for key in theirs if not same(ours.get(key), theirs[key])]
        assert not different and ours.keys() == theirs.keys(), f"{name}: {different}"
    logs = [next(where.glob("results/*/log.csv")).read_bytes() for where in (folder, reference)]
    assert logs[0] == logs[1]


def leftovers(folder):
    return [path.name for path in folder.rglob(TEMPORARY)]


@pytest.fixture(scope="module")
def srresnet(tmp_path_factory):
    """An uninterrupted run of stage 1: its script, arguments and folder."""
    folder = tmp_path_factory.mktemp("srresnet")
    return uninterrupted("train_srresnet", [*SMALL, "--data-folder", make_data(folder)], folder)


@pytest.fixture(scope="module")
def srgan(srresnet, tmp_path_factory):
    """The same of stage 2, from the weights of stage 1."""
    folder = tmp_path_factory.mktemp("srgan")
    files = ["--init", checkpoints(srresnet.folder)[-1], "--vgg-weights", make_vgg(folder / "vgg.pth")]
    return uninterrupted("train_srgan", [*SMALL, *SMALL_GAN, *files, "--data-folder", make_data(folder)], folder)


@pytest.fixture(params=["srresnet", "srgan"])
def stage(request):
    return request.getfixturevalue(request.param)


def uninterrupted(script, arguments, folder):
    result = run(script, arguments, folder)
    assert result.status == 0, result
    return SimpleNamespace(script=script, arguments=arguments, folder=folder)


def finish(stage, folder, *more):
    """Resume a run, see it to its end and compare it with the uninterrupted one."""
    result = run(stage.script, [*stage.arguments, "--resume", *more], folder)
    assert result.status == 0, result
    assert_same_run(folder, stage.folder)
    return result


def stop_after(stage, folder, saves, *more):
    """A run killed when it has saved so many times."""
    process = Script(stage.script, [*stage.arguments, *more], folder)
    assert process.wait_until(lambda: len(checkpoints(folder)) and int(checkpoints(folder)[-1].stem[-8:]) >= 2 * saves)
    process.send(signal.SIGKILL)
    process.wait()
    process.kill()


# ---------------------------------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(stage, tmp_path):
    print("seed", SEED)
    rng, kills, chain = random.Random(SEED), 0, 0
    while kills < KILLS:
        folder, chain, finished = tmp_path / str(chain), chain + 1, False
        while not finished:
            arguments = stage.arguments + (["--resume"] if checkpoints(folder) else [])
            # Half of the kills come at any time, the other half between two file operations of a save.
            in_save = functools.partial(before_file_call, rng.randrange(1, 60), die) if kills % 2 else None
            process = Script(stage.script, arguments, folder, in_save)
            if not in_save:
                lines = rng.randrange(24)
                process.wait_until(lambda process=process, lines=lines: process.output().count("\n") >= lines)
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
            result = process.wait()
            assert result.status in (0, -signal.SIGKILL), result
            finished = result.status == 0
            kills += not finished
            if not finished and not checkpoints(folder):  # nothing to resume: the user clears away and starts anew
                shutil.rmtree(folder)
        assert_same_run(folder, stage.folder)


def test_a_run_killed_before_its_first_save_says_what_to_do(srresnet, tmp_path):
    assert run(srresnet.script, srresnet.arguments, tmp_path, functools.partial(before_file_call, 3, die)).status == -9
    assert not checkpoints(tmp_path)
    again = run(srresnet.script, srresnet.arguments, tmp_path)
    assert (again.status, again.out) == (2, "") and again.err.count("\n") == 1 and "--resume" in again.err
    resumed = run(srresnet.script, [*srresnet.arguments, "--resume"], tmp_path)
    assert resumed.status == 2 and resumed.err.count("\n") == 1 and "no checkpoint" in resumed.err
    assert run(srresnet.script, [*srresnet.arguments, "--name", "another", "--steps", 2], tmp_path).status == 0


def test_a_run_killed_in_its_last_save_is_put_in_order(srresnet, tmp_path):
    in_last_save = functools.partial(die_before_link, STEPS)
    assert run(srresnet.script, srresnet.arguments, tmp_path, in_last_save).status == -signal.SIGKILL
    finish(srresnet, tmp_path)


def die_before_link(step):
    at_save(step, lambda: setattr(os, "link", die))


def test_a_resumed_run_removes_the_unfinished_file_of_the_killed_one(srresnet, tmp_path):
    assert run(srresnet.script, srresnet.arguments, tmp_path, functools.partial(die_within_save, 6)).status == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 1
    finish(srresnet, tmp_path)
    assert not leftovers(tmp_path)


def die_within_save(step):
    at_save(step, lambda: setattr(os, "fsync", die))


# ---------------------------------------------------------------------------------------------------------------------
# Asked to stop
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_after_a_save(stage, tmp_path, signal_number):
    rng, step = random.Random(SEED), 0
    for _ in range(3):
        lines = 4 + rng.randrange(1, 5)  # of saves, figures and validations, so now this is due in the next step, now that
        arguments = stage.arguments + (["--resume"] if step else [])
        process = Script(stage.script, arguments, tmp_path, functools.partial(pause_after, lines))
        signal_during_pause(process, lines, tmp_path, signal_number)
        result = process.wait()
        assert result.status == 0 and not result.err, result
        begun, step, last = step, int(checkpoints(tmp_path)[-1].stem[-8:]), result.out.splitlines()[-1]
        assert begun < step < STEPS and f"step {step};" in last and "--resume" in last, result
    result = finish(stage, tmp_path)
    assert f"steps {step + 1} to {STEPS}" in result.out


def signal_during_pause(process, lines, folder, signal_number, group=False):
    """Send a signal to a process that pauses after so many lines (see helpers.pause_after), then let it go on."""
    assert process.wait_until(lambda: process.output().count("\n") == lines)
    process.send(signal_number, group)
    (folder / "go_on").touch()
    process.process.join(PATIENCE)
    (folder / "go_on").unlink()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_loader_processes_too_stops_the_run_after_a_save(srresnet, tmp_path, signal_number):
    # Ctrl-C in a terminal, and the time limit of a batch system, reach every process of the group.
    process = Script(srresnet.script, [*srresnet.arguments, "--workers", 2], tmp_path, functools.partial(pause_after, 7))
    signal_during_pause(process, 7, tmp_path, signal_number, group=True)
    result = process.wait()
    process.kill()
    assert result.status == 0 and "--resume" in result.out.splitlines()[-1], result
    assert "Traceback" not in result.err, result
    assert not result.err or available_cores() == 1, result  # where PyTorch warns of two workers
    finish(srresnet, tmp_path)


def test_a_second_ctrl_c_does_not_wait(srresnet, tmp_path):
    process = Script(srresnet.script, srresnet.arguments, tmp_path, wait_in_first_save)
    assert process.wait_until(lambda: (tmp_path / "saving").exists())
    process.send(signal.SIGINT)
    assert process.wait_until(lambda: (tmp_path / "caught").exists())
    process.send(signal.SIGINT)
    result = process.wait()
    assert (result.status, result.err) == (130, "interrupted\n"), result
    assert not leftovers(tmp_path / "checkpoints")


def wait_in_first_save():
    on_signal = runs.Run._on_signal

    def note(run, *args):
        on_signal(run, *args)
        Path("caught").touch()

    def wait(*_):
        Path("saving").touch()
        time.sleep(PATIENCE)  # which a handler that returns does not end, and one that raises does

    runs.Run._on_signal = note
    at_save(2, lambda: setattr(os, "fsync", wait))


# ---------------------------------------------------------------------------------------------------------------------
# Two processes and one run
# ---------------------------------------------------------------------------------------------------------------------


def contents(folder):
    """Every file of the runs in a folder, but for what holds the lock."""
    files = [path for name in ("checkpoints", "results") for path in (folder / name).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != runs.LOCK}


@pytest.mark.parametrize(
    "first, step, second", [([], 4, ["--resume"]), (["--dry-run"], 2, ["--dry-run"]), (["--resume"], 16, ["--resume"])]
)
def test_a_run_that_lives_is_left_alone(srresnet, tmp_path, first, step, second):
    if "--resume" in first:
        stop_after(srresnet, tmp_path, 2)
    process = Script(srresnet.script, [*srresnet.arguments, *first], tmp_path, functools.partial(wait_before_save, step))
    assert process.wait_until(lambda: (tmp_path / "about_to_save").exists())
    before = contents(tmp_path)
    other = run(srresnet.script, [*srresnet.arguments, *second, "--device=cpu"], tmp_path)
    assert other.status == 2, other
    assert other.err.startswith("error: another process is training the run") and other.err.count("\n") == 1
    assert before and contents(tmp_path) == before
    process.send(signal.SIGKILL)  # which leaves the file of the lock, but no lock
    process.wait()
    again = run(srresnet.script, [*srresnet.arguments, *second], tmp_path)
    assert again.status == 0 and "done: " in again.out, again
    assert not list(tmp_path.rglob(runs.LOCK))


def test_a_run_killed_with_its_loader_processes_at_work_is_resumed_at_once(srresnet, tmp_path):
    stop_after(srresnet, tmp_path, 2, "--workers", 2)
    finish(srresnet, tmp_path)


def test_two_runs_of_a_new_name_begin_but_once(srresnet, tmp_path):
    # Both have found the name free before either begins.
    process = Script(srresnet.script, srresnet.arguments, tmp_path, wait_before_start)
    assert process.wait_until(lambda: (tmp_path / "about_to_start").exists())
    quick = run(srresnet.script, srresnet.arguments, tmp_path)
    assert quick.status == 0
    before = contents(tmp_path)
    (tmp_path / "go_on").touch()
    late = process.wait()
    assert late.status == 2 and "exists" in late.err and late.err.count("\n") == 1, late
    assert contents(tmp_path) == before


def wait_before_save(step):
    def wait():
        Path("about_to_save").touch()
        time.sleep(PATIENCE)

    at_save(step, wait)


def wait_before_start():
    start = runs.Run.start

    def wait(run, *args, **facts):
        Path("about_to_start").touch()
        while not Path("go_on").exists():
            time.sleep(0.005)
        start(run, *args, **facts)

    runs.Run.start = wait


# ---------------------------------------------------------------------------------------------------------------------
# Resumed otherwise
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_resumed_with_other_workers_is_the_same(stage, tmp_path):
    stop_after(stage, tmp_path, 5)
    finish(stage, tmp_path, "--workers", 2)


def test_a_finished_run_resumed_is_left_as_it_is(srresnet, tmp_path):
    shutil.copytree(srresnet.folder, tmp_path, dirs_exist_ok=True)
    result = finish(srresnet, tmp_path)
    assert "saved" not in result.out


def test_the_newest_whole_checkpoint_is_taken(stage, tmp_path):
    stop_after(stage, tmp_path, 4)
    before, newest = checkpoints(tmp_path)[-2:]
    whole = newest.read_bytes()
    # last.pth is the same file under a second name, so it is cut too.
    newest.write_bytes(whole[: len(whole) // 2])
    result = finish(stage, tmp_path)
    assert newest.name in result.err and "whole" in result.err and result.err.count("\n") == 1
    assert f"steps {int(before.stem[-8:]) + 1} to {STEPS}" in result.out


# ---------------------------------------------------------------------------------------------------------------------
# Disk full
# ---------------------------------------------------------------------------------------------------------------------


def assert_one_line(result):
    assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in(step, name):
    """Let an operation of the save of `step` fail."""
    at_save(step, lambda: setattr(os, name, no_space))


def full_in_write(step):
    """Let no file grow beyond 20,000 bytes from the save of `step` on: a checkpoint is larger, the logs are not."""
    at_save(step, lambda: limit_file_size(20_000))


def full_in_copy(step):
    """The same, for the copy that becomes last.pth on a file system that has no links."""

    def no_links(source, *_):
        if str(source).endswith(f"step_{step:08d}.pth"):
            limit_file_size(20_000)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    os.link = no_links


def full_in_log(step):
    """Put the open log.csv on a full device."""

    def fill():
        for number in os.listdir("/proc/self/fd"):
            if os.path.realpath(f"/proc/self/fd/{number}").endswith("log.csv"):
                os.dup2(os.open("/dev/full", os.O_WRONLY), int(number))

    at_save(step, fill)


@pytest.mark.parametrize(
    "trouble",
    [
        functools.partial(full_in_write, 8),
        functools.partial(full_in, 8, "fsync"),
        functools.partial(full_in, 8, "replace"),
        functools.partial(full_in_copy, 8),
        functools.partial(full_in_log, 8),
    ],
    ids=["write", "fsync", "rename", "copy", "log"],
)
def test_a_full_disk_is_one_clear_line_and_costs_no_checkpoint(srresnet, tmp_path, trouble):
    result = run(srresnet.script, srresnet.arguments, tmp_path, trouble)
    assert_one_line(result)
    assert "space" in result.err or "large" in result.err
    assert not leftovers(tmp_path)
    steps = [int(path.stem[-8:]) for path in checkpoints(tmp_path)]
    assert steps in ([4, 6], [6, 8])
    for path in checkpoints(tmp_path):
        assert load(path)["step"] == int(path.stem[-8:])
    finish(srresnet, tmp_path)


def test_a_full_disk_in_stage_2_costs_no_checkpoint(srgan, tmp_path):
    result = run(srgan.script, srgan.arguments, tmp_path, functools.partial(full_in_write, 8))
    assert_one_line(result)
    assert not leftovers(tmp_path) and [load(path)["step"] for path in checkpoints(tmp_path)] == [4, 6]
    finish(srgan, tmp_path)
