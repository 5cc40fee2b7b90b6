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
    "flags": set(),
    "locations": GROUND,
    "validated": GROUND,
    "files": GROUND,
    "workers": GROUND,
    "corruption": GROUND | {"validated"},
    "transfer": GROUND | {"unet3d"},
    "restoration": set(),
    "figures": {"files"},
    "numpy_values": set(),
    "sources": GROUND | {"datasets", "transfer"},
    "unet3d": set(),
    "checkpoint": GROUND | {"files", "numpy_values", "sources", "transfer"},
    "settings": GROUND | {"validated", "corruption"},
    "datasets": GROUND | {"files"},
    "patches": {"corruption"},
    "training": GROUND | {"datasets"},
    "scan_images": GROUND,
    "scans": GROUND | {"scan_images"},
    "import_journal": GROUND | {"files", "scans"},
    "volumes": GROUND | {"files", "workers", "scans", "scan_images", "import_journal"},
    "planning": GROUND | {"datasets", "files", "locations", "settings"},
    "preprocessing": GROUND | {"datasets", "files", "planning", "scan_images", "workers"},
    "preview": GROUND | {"corruption", "datasets", "figures", "patches", "settings", "training"},
    "transferring": GROUND | {"checkpoint", "datasets", "files", "settings", "sources", "transfer"},
    "pretraining": GROUND | {"checkpoint", "corruption", "datasets", "figures", "files", "patches", "restoration",
                             "settings", "training"},
    "encoders": GROUND | {"checkpoint", "transfer"},
    "exporting": GROUND | {"checkpoint", "datasets", "files", "locations"},
    "finetuning": GROUND | {"checkpoint", "files", "settings", "training"},
}  # fmt: skip
"""The command line (`cli`) may use everything."""


def rooms_used_in(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnunet_genesis"):
            yield (node.module.split(".")[1:2] or ["__init__"])[0]


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_uses_only_the_rooms_below_it(room):
    files = [*LIBRARY.glob(f"{room}.py"), *(LIBRARY / room).rglob("*.py")]
    assert files
    for file in files:
        strangers = set(rooms_used_in(file)) - MAY_USE[room] - {room}
        assert not strangers, f"{file.name} reaches into {strangers}; see MAY_USE"


def test_every_room_has_a_law():
    rooms = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"cli", "__pycache__"} == set(MAY_USE)


def test_the_cores_do_not_know_nnunet():
    for room in ("corruption", "transfer", "restoration.py"):
        path = LIBRARY / room
        for file in [path] if path.is_file() else path.rglob("*.py"):
            assert "nnunetv2" not in file.read_text(), file
