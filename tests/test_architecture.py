"""The house plan, read from the imports."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitreous

SOURCE = Path(vitreous.__file__).parent
LEVELS = [
    {
        "errors",
        "files",
        "cache",
        "fetching",
        "config",
        "cores",
        "fields",
        "provenance",
        "seeding",
        "console",
        "tables",
        "schedule",
        "resampling",
        "tokens",
        "stem",
        "position",
        "relative",
        "feed_forward",
        "stopping",
        "allocator",
        "hang",
        "student",
    },
    {"block", "resnet", "initialisation", "vit"},
    {"pooling", "head", "classifier", "variants", "budget", "packing"},
    {"data", "optim", "distributed", "metrics", "weights", "claim"},
    {"run_folder", "run_state", "tracking"},
    {"parallel", "guard", "saved", "comparison", "comparison_rows"},
    {"checkpoint", "averaging", "scaling"},
    {"objectives"},
    {"run"},
    {"evaluation", "trainee"},
    {"recent", "usage", "diagnosis", "close_up"},
    {"training", "recorded"},
    {"recipes", "fine_tuning"},
    {"inspection", "predict"},
    {"predictions", "experiment", "replay", "planning", "measurement", "suite"},
    {"fitting", "grid", "rate_test", "data_speed"},
    {"demo", "doctor", "selftest"},
    {"cli"},
    {"__main__"},
]
HEAVY = {"matplotlib", "starlette", "uvicorn", "onnx", "cyclopts", "torchvision", "sklearn", "torch", "numpy", "PIL"}


def room(module: str) -> str:
    """The file or folder of the house that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(["vitreous", *(part for part in parts if part != "__init__")])] = path
    return names


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, without those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and str(node.module).startswith("vitreous"):
            found |= {f"{node.module}.{name.name}" for name in node.names} & set(modules()) or {str(node.module)}
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            found |= {name.name for name in node.names if name.name.startswith("vitreous")}
    return found


def level(name: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if name in rooms)


def test_every_room_has_its_level():
    rooms = {room(module) for module in modules()} - {""}
    assert rooms == set().union(*LEVELS)
    assert sum(map(len, LEVELS)) == len(rooms)


def test_imports_go_down_only():
    rising = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in imported(path)
        if room(module) and room(other) and room(other) != room(module) and level(room(other)) > level(room(module))
    ]
    assert rising == []


def test_no_module_imports_itself_by_a_detour():
    TopologicalSorter({module: imported(path) - {"vitreous"} for module, path in modules().items()}).prepare()


def test_only_the_command_line_imports_its_library():
    users = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cyclopts")
    }
    assert {room(user) for user in users} == {"cli"}


def test_foreign_words_stay_in_weights():
    foreign = ("embed_dim", "hidden_size", "cls_token", "pos_embed", "attention_probs")
    for module, path in modules().items():
        if room(module) != "weights":
            text = path.read_text("utf-8")
            assert [word for word in foreign if word in text] == [], module


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import vitreous", HEAVY),
        ("from vitreous import ViT, ViTConfig", HEAVY - {"torch", "numpy"}),
        ("from vitreous import load", HEAVY - {"torch", "numpy", "PIL"}),
        ("from vitreous import fit", HEAVY - {"torch", "numpy", "PIL"}),
    ],
)
def test_imports_are_light(statement, absent):
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert absent & set(loaded) == set()


def test_what_is_visible_is_what_is_public():
    assert [name for name in dir(vitreous) if not name.startswith("_")] == sorted(vitreous.__all__)
    assert all(getattr(vitreous, name).__name__ == name for name in vitreous.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vitreous.nothing  # noqa: B018
