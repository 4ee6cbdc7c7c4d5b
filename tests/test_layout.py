"""The house: each module on its floor, imports that go down, files that are read in one sitting and named in the README."""

import ast
import re

import pytest
from conftest import ROOT

FLOORS = [
    {"utils"},
    {"layers", "batchnorm", "losses", "optimizers", "degradations", "devices", "compiling"},
    {
        "models",
        "pictures.pixels",
        "pictures.formats",
        "pictures.deep",
        "pictures.video",
        "pictures.apng",
        "pictures.comparison",
        "pictures.folders",
        "pictures.metadata",
        "pictures.opening",
        "pictures.viewer",
    },
    {"inference", "weights", "image_lists", "pairs"},
    {"metrics", "datasets", "logs", "upscaling", "more_metrics"},
    {"spandrel_srresnet"},
    {"runs"},
    {"create_data_lists", "train_srresnet", "train_srgan", "train_distilled", "eval", "test", "export", "hubconf", "app"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
LONGEST = 400  # lines of code: neither empty, nor a comment, nor of a docstring


def modules():
    """The source of each module of the repository, by its name."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    found |= {f"{path.parent.name}.{path.stem}": path for path in ROOT.glob("pictures/*.py") if path.stem != "__init__"}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def imports(source):
    """The modules of the repository that a source imports, wherever in it."""
    known, found = set(FLOOR_OF), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= known.intersection(names)
    return found


def upward(sources):
    """The imports that go up a floor, as (module, imported)."""
    pairs = ((name, other) for name, source in sources.items() for other in imports(source))
    return sorted((name, other) for name, other in pairs if FLOOR_OF[other] > FLOOR_OF[name])


def circles(sources):
    """The modules that import themselves by way of others."""
    reached = {name: imports(source) for name, source in sources.items()}
    for _ in reached:
        reached = {name: others.union(*(reached[other] for other in others)) for name, others in reached.items()}
    return sorted(name for name, others in reached.items() if name in others)


def lines_of_code(source):
    """The number of lines that are neither empty, nor a comment, nor of a docstring."""
    lines = {number for number, line in enumerate(source.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False)
        if documented:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def named_in_readme(text):
    """The modules that the first column of the README's table of files names."""
    rows = [line.split(" | ") for line in text.split("\n") if re.match(r"\| \d \| ", line)]
    files = re.findall(r"`([\w/]+\.py)`", "\n".join(row[1] for row in rows))
    return {name.removesuffix(".py").replace("/", ".") for name in files}


def test_every_module_has_its_floor():
    assert set(modules()) == set(FLOOR_OF)


def test_imports_go_down():
    sources = modules()
    assert not upward(sources)
    assert not circles(sources)


@pytest.mark.parametrize("name", sorted(modules()))
def test_file_is_read_in_one_sitting(name):
    assert lines_of_code(modules()[name]) <= LONGEST


@pytest.mark.parametrize("name", sorted(modules()))
def test_module_says_what_is_in_it(name):
    assert len(ast.get_docstring(ast.parse(modules()[name])) or "") > 40


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_names_every_module(name):
    assert named_in_readme((ROOT / name).read_text(encoding="utf-8")) == set(modules())


def test_pytorch_is_imported_at_the_top():
    """Above the ground floor; in a script after its arguments, so that --help and a bad flag are answered at once."""
    for name, source in modules().items():
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        inner = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import)]
        assert "torch" not in {alias.name for node in inner for alias in node.names}, name
    assert "torch" not in {node.names[0].name for node in ast.parse(modules()["utils"]).body if isinstance(node, ast.Import)}


def test_what_the_checks_find():
    """A house with each fault."""
    house = {"utils": "", "layers": "def late():\n    from models import SRResNet", "models": "import layers"}
    assert upward(house) == [("layers", "models")]
    assert circles(house) == ["layers", "models"]
    assert imports("from pictures import video\nimport pictures.deep") == {"pictures.video", "pictures.deep"}
    assert lines_of_code('"""A\nB"""\n\n# why\nx = 1\ndef f():\n    """C."""\n    return """D\nE"""\n') == 4
