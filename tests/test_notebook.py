"""The tutorial runs from top to bottom on a copy of the repository, without a network: `./run test -m notebook`."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_docs import flags_of

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, 4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_results(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            compile(cell.source, "cell", "exec")
    assert NOTEBOOK.stat().st_size < 50_000


def test_what_it_names_exists(notebook):
    whole = "\n".join(cell.source for cell in notebook.cells)
    links = re.findall(r"\]\(https://github.com/OWNER/REPO/blob/main/([^)]+)\)", whole)
    assert links and all((ROOT / link).exists() for link in links)
    # Each call, with the strings that go on in the lines below it.
    calls = re.findall(r"run\(\s*f?\"((?:[^\"]|\"\s+f?\")*)\"\s*\)", "\n".join(code(notebook)))
    assert len(calls) >= 9
    for call in calls:
        script = call.split()[0]
        assert (ROOT / script).is_file(), script
        if "/" not in script:
            assert set(re.findall(r"(?<!\S)\"?f?\"?(--[a-z][\w-]*)", call)) <= flags_of(script), call


@pytest.mark.notebook
def test_it_runs(notebook, tmp_path, monkeypatch):
    """As on a machine without a network: no download works, and LPIPS and VGG19 say so."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    for name in ("VGG19_WEIGHTS", "ALEXNET_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    client = nbclient.NotebookClient(
        notebook.copy(), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "docs")}}
    )
    client.execute()
    printed = "".join(output.get("text", "") for cell in client.nb.cells for output in cell.get("outputs", ()))
    for words in ("LPIPS is left out", "RANDOM weights", "step 200/200", "step 20/20"):
        assert words in printed, words
    results = tmp_path / "results/tutorial"
    for name in ("upscaled/chelsea_x4.png", "eval/metrics.md", "curves.svg", "curves_theme.svg"):
        assert (results / name).is_file(), name
    data = [output.data for cell in client.nb.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/svg+xml" in shown for shown in data) == 2
    assert sum("image/png" in shown for shown in data) == 3  # the photograph, the blends, before and after
    assert any("slider" in shown.get("text/html", "") for shown in data)
