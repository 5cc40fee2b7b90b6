"""Which file may import which: arrows point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "nnunet_genesis"
GROUND = {"errors"}
MAY_USE: dict[str, set[str]] = {
    "__init__": {"encoders"},
    "errors": set(),
    "cli_settings": set(),
    "unet3d": set(),
    "primus": set(),
    "resources": GROUND,
    "settings_base": GROUND,
    "ignored_regions": GROUND | {"files", "nnunet_dataset"},
    "files": GROUND,
    "parallel": GROUND,
    "shards": GROUND,
    "named_classes": GROUND | {"primus", "unet3d"},
    "architecture_checks": GROUND | {"named_classes"},
    "plans_checks": GROUND | {"architecture_checks", "named_classes"},
    "nnunet_dataset": GROUND | {"files", "plans_checks"},
    "corruption": GROUND | {"settings_base"},
    "settings": GROUND | {"settings_base", "corruption", "plans_checks"},
    "networks": GROUND | {"architecture_checks", "named_classes", "nnunet_dataset"},
    "checkpoints": GROUND | {"architecture_checks", "files", "named_classes", "networks", "nnunet_dataset", "primus"},
    "hub": GROUND | {"checkpoints", "files"},
    "publishing": GROUND | {"checkpoints", "files", "hub", "named_classes", "networks", "settings"},
    "transfer": GROUND | {"checkpoints", "files", "hub", "named_classes", "networks", "nnunet_dataset", "settings"},
    "folds": GROUND | {"nnunet_dataset", "plans_checks", "preflight"},
    "leaks": GROUND | {"checkpoints", "files"},
    "volume_index": GROUND | {"files", "ignored_regions", "leaks"},
    "importing": GROUND | {"files", "parallel", "shards"},
    "challenges": GROUND | {"files", "importing", "parallel", "plans_checks", "shards"},
    "primus_plans": GROUND | {"nnunet_dataset", "primus"},
    "planning": GROUND | {"files", "folds", "nnunet_dataset", "plans_checks", "resources", "settings"},
    "preprocessing": GROUND | {"files", "ignored_regions", "importing", "nnunet_dataset", "parallel", "planning",
                              "shards", "volume_index"},
    "preflight": GROUND | {"nnunet_dataset"},
    "pretraining": GROUND | {"batches", "checkpoints", "corruption", "files", "ignored_regions", "leaks", "networks",
                             "nnunet_dataset", "named_classes", "preflight", "ranks", "settings", "volume_index"},
    "interruption": set(),
    "batches": {"interruption", "parallel"},
    "ranks": GROUND | {"checkpoints", "interruption", "parallel"},
    "distributed": GROUND | {"interruption", "preflight", "ranks"},
    "finetuning": GROUND | {"batches", "checkpoints", "files", "networks", "named_classes", "preflight", "ranks", "settings"},
    "study": GROUND | {"checkpoints", "files", "finetuning", "folds", "hub", "leaks", "networks", "nnunet_dataset", "parallel", "plans_checks",
                       "preflight", "settings", "settings_base", "shards", "transfer"},
    "restoring": GROUND | {"checkpoints", "files", "hub", "importing", "networks", "nnunet_dataset", "plans_checks", "preflight",
                           "preprocessing", "pretraining", "settings"},
    "encoders": GROUND | {"architecture_checks", "checkpoints", "hub", "named_classes", "networks", "transfer"},
    "export": GROUND | {"checkpoints", "files", "named_classes", "nnunet_dataset", "plans_checks", "primus_plans",
                        "resources"},
}  # fmt: skip
"""The command line (`cli` and its `commands`) may use everything."""


def rooms_used_in(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            if module.split(".")[0] == "nnunet_genesis":
                yield (module.split(".")[1:2] or ["__init__"])[0]


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_uses_only_the_rooms_below_it(room):
    files = [*LIBRARY.glob(f"{room}.py"), *(LIBRARY / room).rglob("*.py")]
    assert files
    for file in files:
        strangers = set(rooms_used_in(file)) - MAY_USE[room] - {room}
        assert not strangers, f"{file.name} reaches into {strangers}; see MAY_USE"


def test_every_room_has_a_law():
    rooms = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"cli", "commands", "__pycache__"} == set(MAY_USE)


def test_the_cores_do_not_know_nnunet():
    cores = [*(LIBRARY / "corruption").rglob("*.py"), *(LIBRARY / "transfer").rglob("*.py")]
    cores = [file for file in cores if file.name != "into_plans.py"]
    for file in [*cores, LIBRARY / "pretraining" / "loss.py", LIBRARY / "networks" / "layout.py"]:
        assert "nnunetv2" not in file.read_text(), file


def test_rooms_do_not_import_each_other():
    for room, used in MAY_USE.items():
        below, waiting = set(), set(used)
        while waiting:
            below.add(found := waiting.pop())
            waiting |= MAY_USE[found] - below
        assert room not in below, f"{room} imports itself by way of {below}"


def test_no_two_files_have_the_same_name():
    names = [file.name for file in LIBRARY.rglob("*.py") if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))
