"""What the README and the answers tell people to type exists and works, and the Chinese README says the same as the English."""

import ast
import importlib.util
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import make_vgg
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

import utils
from models import Discriminator, Generator, SRResNet
from weights import save_checkpoint

README, CHINESE, FAQ, TOOLS = DOCUMENTS = ("README.md", "README.zh-CN.md", "docs/FAQ.md", "docs/OTHER_TOOLS.md")
METHOD = "docs/HOW_IT_WORKS.md", "docs/HOW_IT_WORKS.zh-CN.md"  # the page that explains, in both languages
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*DOCUMENTS, *METHOD)}
OTHER_PROGRAMS = {"--logdir", "--shm-size", "--gpus", "--onnx", "--snapshot-update"}  # TensorBoard, Docker, ...

# What makes a training command of the README one of a second.
SMALL = ["--dry-run", "--batch-size=2", "--crop-size=16", "--device=cpu", "--precision=fp32", "--workers=0"]
SMALL_FOR = {"train_srresnet": ["--blocks=1", "--channels=4"], "train_srgan": ["--discriminator-channels=2", "--vgg-layer=11"]}
SMALL_FOR["train_distilled"] = []
SMALL_FOR["train_srgan"] += ["--discriminator-crop=16", "--vgg-crop=16", "--vgg-weights=vgg.pth"]


def code_lines(name):
    """The lines of the indented code blocks, without comments."""
    lines = [line for line in TEXTS[name].split("\n") if line.startswith("    ")]
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


def prose(name):
    return "\n".join(line for line in re.sub("```.*?```", "", TEXTS[name], flags=re.S).split("\n") if line[:4] != "    ")


def python_blocks(name):
    return re.findall("```python\n(.*?)```", TEXTS[name], re.S)


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", text)


def table_rows(name):
    return [line for line in TEXTS[name].split("\n") if line.startswith("|") and set(line) - set("|-")]


def links(text):
    """Where the links of a text go, as if each page were there in one language."""
    return [target.replace(".zh-CN", "") for target in re.findall(r"\]\(([^)]+)\)", text)]


def figures(text):
    text = re.sub(r"stage \d", "", text)  # 第一阶段
    return Counter(re.findall(r"\d+(?:[.,/]\d+)*", text))


def commands(name):
    """Each `python SCRIPT ...` and `torchrun ... SCRIPT ...` of a document as (script, arguments)."""
    for line in code_lines(name):
        words = shlex.split(line) if line.startswith(("python ", "torchrun ")) else [""]
        if words[0] == "torchrun":
            launch = torchrun_parser().parse_args(words[1:])
            yield launch.training_script, launch.training_script_args
        elif words[0] and words[1] == "-c":
            ast.parse(words[2])
        elif words[0] and words[1] != "-m":
            yield words[1], words[2:]


def load(script):
    """The module of a script; those at the top level may be imported already."""
    if "/" not in script:
        return importlib.import_module(Path(script).stem)
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def flags_of(script):
    """The flags that a script takes, from its own parser."""
    parsers = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):

        def caught(parser, words=None):
            parsers.append(parser)
            raise InterruptedError

        patch.setattr(utils.ArgumentParser, "parse_args", caught)
        load(script).parse_arguments()
    return set(parsers[0]._option_string_actions)


def parse(script, arguments):
    module = load(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        return module, module.parse_arguments()


@pytest.mark.parametrize("name", (*DOCUMENTS, *METHOD))
def test_commands_are_accepted(name):
    found = list(commands(name))
    assert len(found) > (4 if name in METHOD else 5 if name == TOOLS else 10)
    for script, arguments in found:
        assert (ROOT / script).is_file(), script
        if hasattr(load(script), "parse_arguments"):
            try:
                parse(script, arguments)
            except SystemExit:
                pytest.fail(f"{name}: refused: {script} {shlex.join(arguments)}")


@pytest.mark.parametrize("name", (*DOCUMENTS, *METHOD))
def test_flags_named_in_prose_exist(name):
    scripts = sorted(path.name for path in ROOT.glob("*.py") if "def parse_arguments" in path.read_text(encoding="utf-8"))
    flags = {script: flags_of(script) for script in scripts}
    torchrun = set(torchrun_parser()._option_string_actions)
    known = OTHER_PROGRAMS.union(torchrun, *flags.values())
    for code in inline_code(prose(name)):
        script = next((script for script in scripts if code.startswith(script)), None)
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
        assert named <= (flags[script] if script else known), code


@pytest.mark.parametrize("name", (*DOCUMENTS, *METHOD))
def test_files_named_exist(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        assert target.startswith("https://") or (folder / target.split("#")[0]).exists(), target
    for code in inline_code(prose(name)):
        if re.fullmatch(r"[\w/]+\.py", code) and code != "protocols.py":  # which the reader is asked to make
            assert (ROOT / code).is_file(), code
    rows = [re.fullmatch(r"\| - \| ((`\w+/`(, |、)?)+) \|.*", row) for row in table_rows(name)]  # of the table of floors
    folders = [folder for row in rows if row for folder in inline_code(row[1])]
    assert all((ROOT / folder).is_dir() for folder in folders)
    assert folders or name not in (README, CHINESE)


@pytest.mark.parametrize("name", (README, CHINESE))
def test_what_is_to_be_changed_is_there(name):
    """Each row of the table of changes: the functions, classes and constants it names are in the files it names."""
    rows = [row for row in table_rows(name) if row.count(" | ") == 1]
    assert len(rows) > 10
    for row in rows:
        codes = inline_code(row)
        sources = [(ROOT / code).read_text(encoding="utf-8") for code in codes if code.endswith(".py")]
        for part in re.findall(
            r"[A-Za-z_]\w+", " ".join(code for code in codes if "-" not in code and not code.endswith(".py"))
        ):
            assert any(re.search(rf"(?m)^\s*(?:def|class) {part}\b|^(?:\w+, )*{part}\b.* = ", text) for text in sources), (
                part,
                row,
            )


@pytest.mark.parametrize("english, chinese", [(README, CHINESE), METHOD])
def test_both_languages_say_the_same(english, chinese):
    assert code_lines(chinese) == code_lines(english)
    assert python_blocks(chinese) == python_blocks(english)
    for row, translated in zip(table_rows(english), table_rows(chinese), strict=True):
        same = figures(row) == figures(translated) and set(inline_code(row)) == set(inline_code(translated))
        assert same and row.count("|") == translated.count("|"), (row, translated)
    text, translated = prose(english), prose(chinese)
    assert set(inline_code(text)) == set(inline_code(translated))
    assert figures(text) == figures(translated)
    assert links(text) == links(translated)
    assert equations(text) == equations(translated)
    for pattern in (r"@@\w+@@", r"(?m)^#+ ", r"!\["):
        assert re.findall(pattern, text) == re.findall(pattern, translated)


def equations(text):
    """The displayed equations of a text in their order, and how often each symbol stands in a line."""
    displayed = re.findall(r"(?s)\$\$\n(.*?)\n\$\$", text)
    return displayed, Counter(re.findall(r"\$([^$\n]+)\$", re.sub(r"(?s)\$\$.*?\$\$", "", text)))


def names_in(source):
    """The functions, classes and methods (CLASS.METHOD) that a module defines."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", METHOD)
def test_equations_stand_beside_their_functions(name):
    """Each displayed equation is followed by links [`FILE`: `NAME`](PATH) to functions that are there."""
    text, linked = TEXTS[name], r"\[`([\w/]+\.py)`: `([\w.]+)`\]\(([^)]+)\)"
    parts = re.split(r"(?s)\$\$\n.*?\n\$\$\n\n", text)
    assert len(parts) > 15 and all(re.match(linked, part) for part in parts[1:])
    found = re.findall(linked, text)
    for file, function, path in found:
        assert ((ROOT / name).parent / path).resolve() == ROOT / file, file
        assert function in names_in((ROOT / file).read_text(encoding="utf-8")), (file, function)
    assert {"gram_matrix", "cosine_distance", "chroma_loss", "consistency_loss", "echo_loss"} <= {match[1] for match in found}


@pytest.mark.parametrize("name", METHOD)
def test_equations_are_written_as_github_reads_them(name):
    """Markdown comes first there: of _ and * it may make emphasis, of a backslash before a sign the sign alone."""
    displayed, inline = equations(TEXTS[name])
    for equation in (*displayed, *inline):
        assert not re.search(r"[^\w]_|\*|\\[^a-zA-Z]|[<>]", equation), equation
        assert equation.count("{") == equation.count("}")
    for line in prose(name).split("\n"):  # GitHub knows a symbol by the space or bracket before it and the sign after it
        between = re.split(r"\$[^$]+\$", line)
        assert "$" not in "".join(between).replace("$$", ""), line
        assert all(part[-1:] in ("", " ", "(") for part in between[:-1]), line
        assert not any(re.match(r"\w", part) for part in between[1:]), line


def test_what_the_checks_of_equations_find():
    assert names_in("class A:\n    def f(self): ...\n\ndef g():\n    def inner(): ...") == {"A", "A.f", "g"}
    assert equations("$$\na\n$$\n $b$ and $b$") == (["a"], Counter({"b": 2}))
    assert links("[a](B.zh-CN.md#c) ![d](e.webp)") == ["B.md#c", "e.webp"]


@pytest.fixture
def reader(work, monkeypatch):
    """A folder as the reader of the README has it, with small pictures and small weights in place of the shipped ones."""
    for script in ("eval", "train_srgan", "train_distilled"):
        monkeypatch.setattr(f"{script}.load_lpips", lambda *_: lambda sr_img, hr_img: 0.5)  # which may be a download
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    picture = Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC)
    picture.save("photo.jpg")
    picture.crop((0, 0, 30, 20)).save("more.png")
    counts = {"train2014": 12, "val2014": 12, "path/to/photos": 24, "Set5": 2, "Set14": 1, "BSD100": 1}
    counts |= {"photos": 2, "path/to/hr_images": 1}
    for folder, count in counts.items():
        Path(folder).mkdir(parents=True)
        for i in range(count):
            name = f"{folder.replace('/', '_')}_{i}.jpg"
            picture.save(Path(folder, name), comment=name)  # or they would be left out as copies of one another
    torch.manual_seed(0)
    for run in ("srresnet_x4", "srgan_x4", "srresnet_x4_photo", "srgan_x4_photo", "photo", "photo_gan", "mine", "mine_gan2"):
        network = Generator(4, 1, 4) if "gan" in run else SRResNet(4, 1, 4)
        state = {"config": network.config, "weights": network.state_dict(), "step": 1}
        state |= {"discriminator": Discriminator(2).state_dict()} if "gan" in run else {}
        Path("checkpoints", run).mkdir(parents=True)
        for path in (f"checkpoints/{run}.pth", f"checkpoints/{run}/best.pth", f"checkpoints/{run}/last.pth"):
            save_checkpoint(Path(path), state)
    torch.save(network.state_dict(), "path/to/others.pth")
    make_vgg("vgg.pth")
    return work


def write_clip(path):
    """A video of two frames. Skips the test without the package av."""
    av = pytest.importorskip("av")
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(2):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode())


def run(script, arguments):
    small = [*SMALL, *SMALL_FOR[Path(script).stem]] if script.startswith("train_") else []
    module, args = parse(script, [*arguments, *small])
    with module.user_errors():
        module.main(args)


def test_readme_commands_run(reader, capsys):
    """In their order, but for those of torchrun, and of app.py, and test.py each time as if it were the first."""
    scripts = set()
    for line in dict.fromkeys(code_lines(README)):
        if line.startswith("python ") and not any(word in line for word in ("clip.mp4", "benchmark", "export.py", "app.py")):
            script, *arguments = shlex.split(line)[1:]
            shutil.rmtree("results", ignore_errors=True)
            run(script, arguments)
            scripts.add(script)
            if line == "python test.py photo.jpg":
                with Image.open("results/test/photo_x4.png") as result:
                    assert result.size == (384, 384)
            if "hr_images" in line:
                assert Path("results/eval/hr_images").is_dir()
            if "--outscale 3" in line:
                assert Path("results/test/photo_x3.webp").exists()
    assert {"create_data_lists.py", "train_srresnet.py", "train_srgan.py", "eval.py", "test.py"} <= scripts
    assert Path("data/BSD100_test_images.json").exists()


def test_readme_video_command_runs(reader):
    write_clip("clip.mp4")
    assert "python test.py clip.mp4" in code_lines(README)
    run("test.py", ["clip.mp4"])
    assert Path("results/test/clip_x4.mp4").exists()


def test_python_of_the_readme_runs(reader, capsys):
    script, hub = python_blocks(README)
    exec(compile(script, "of_the_readme.py", "exec"), {})
    assert capsys.readouterr().out == "(96, 96, 3) -> (384, 384, 3)\n"
    with Image.open("results/photo_x4.png") as result:
        assert result.size == (384, 384)
    exec(compile(hub.replace('load(".",', f"load({str(ROOT)!r},"), "of_the_readme.py", "exec"), {})
    assert capsys.readouterr().out == "(96, 96, 3) -> (384, 384, 3)\n"


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_commands_and_python_for_other_programs_run(reader, capsys):
    for package in ("onnxscript", "onnxruntime", "spandrel", "pnnx", "ncnn"):
        pytest.importorskip(package)
    Path("results").mkdir()
    exports = [shlex.split(line)[1:] for line in code_lines(README) if line.startswith("python export.py")]
    for script, *arguments in exports:
        run(script, arguments)
    assert len(exports) == 2 and Path("checkpoints/srgan_x4.param").exists()
    onnxruntime, opencv, spandrel = python_blocks(TOOLS)
    exec(compile(onnxruntime, "of_the_tools.py", "exec"), {})
    with Image.open("results/photo_onnxruntime.png") as result:
        assert result.size == (384, 384)
    if importlib.util.find_spec("cv2"):
        exec(compile(opencv, "of_the_tools.py", "exec"), {})
        assert Path("results/photo_opencv.png").exists()
    capsys.readouterr()
    exec(compile(spandrel, "of_the_tools.py", "exec"), {})
    assert capsys.readouterr().out == "SRResNet 4 ['4nf', '1nb']\n"


def test_script_of_the_answers_prints_their_table(reader, capsys):
    (script,) = python_blocks(FAQ)
    exec(compile(script, "protocols.py", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(table_rows(FAQ)) - 1  # but for the head
    assert all(re.fullmatch(r".{30} \d\d\.\d\d 0\.\d{4}", line) for line in lines), lines
