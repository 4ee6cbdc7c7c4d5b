"""The curves of training runs, out of their logs."""

import sys

import pytest
from conftest import ROOT, one_line
from test_docs import load

pytest.importorskip("matplotlib")

GAN = "step,learning_rate,generator,content,share_content,accuracy_hr,validation/psnr,validation/lpips,validation/echo\n"
GAN += "10,1e-4,0.5,0.4,0.8,0.9,,,\n20,1e-4,0.4,0.3,0.75,0.8,27.1,0.3,0.05\n"
FIRST = "step,learning_rate,loss,gradient_norm,validation/psnr\n5,1e-3,0.1,1,\n10,1e-3,0.05,1,30.5\n"


@pytest.fixture
def plot(work, monkeypatch):
    """Run the script in a folder with two logs, and return the picture as text."""
    module = load("benchmarks/plot_runs.py")
    for path, text in {"results/gan/log.csv": GAN, "results/first/log.csv": FIRST, "old.csv": FIRST}.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["plot_runs.py", *words])
        with module.user_errors():
            module.main(module.parse_arguments())
        return (work / "results/curves.svg").read_text()

    return run


def test_a_run_is_drawn_with_what_its_log_holds(plot):
    gan, first = plot("gan"), plot("results/first")
    for title in ("their shares", "LPIPS", "artifacts", "tells right"):
        assert title in gan and title not in first
    assert ">echo<" in gan  # alone in its plot, and not named by the title
    assert "PSNR" in gan and "PSNR" in first and "nan" not in gan


def test_each_term_of_each_loss_is_drawn():
    module = load("benchmarks/plot_runs.py")
    figures = {"step", "learning_rate", "loss", "generator", "discriminator"}
    for log in (ROOT / "docs" / "logs").glob("*.csv"):
        columns = {column for column in module.read_log(log) if "/" not in column and "norm" not in column} - figures
        terms = {column.removeprefix("share_") for column in columns if not column.startswith("accuracy_")}
        assert terms <= set(module.TERMS), log


def test_several_runs_are_told_apart_by_name(plot):
    picture = plot("gan", "first", "old.csv")
    assert all(f">{name}<" in picture for name in ("gan", "first", "old"))


def test_joined_runs_go_on_where_the_one_before_ended():
    module = load("benchmarks/plot_runs.py")
    one, two = {"loss": [(5, 0.1), (10, 0.05)], "validation/psnr": [(10, 30.5)]}, {"loss": [(4, 0.04)], "new": [(8, 1.0)]}
    whole, ends = module.joined([one, two, one])
    assert whole["loss"] == [(5, 0.1), (10, 0.05), (14, 0.04), (23, 0.1), (28, 0.05)]
    assert whole["validation/psnr"] == [(10, 30.5), (28, 30.5)] and whole["new"] == [(18, 1.0)]
    assert ends == [10, 18, 28]


@pytest.mark.parametrize("text", ["", "step,loss\n", "a,b\n1,2\n", "step,loss\nx,1\n", "step,loss\n1,high\n", "step\n1,2,3\n"])
def test_what_is_no_log_is_refused(plot, work, capsys, text):
    (work / "bad.csv").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        plot("bad.csv")
    assert stopped.value.code == 2 and "bad.csv" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("words", [("none",), ("gan", "gan"), ("gan", "--output", "curves.xyz")])
def test_what_cannot_be_drawn_is_refused(plot, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        plot(*words)
    assert stopped.value.code == 2 and one_line(capsys.readouterr().err)


def test_the_logs_of_the_documents_are_read():
    for path in (ROOT / "docs/logs").glob("*.csv"):
        columns = load("benchmarks/plot_runs.py").read_log(path)
        assert {"loss", "generator"} & set(columns) and "validation/psnr" in columns, path
