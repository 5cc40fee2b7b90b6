"""Small files take neither memory nor time beyond their size; strange tensors and names are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from tests.checkpoints import attacks, build
from tests.checkpoints.files import small_plans, stock, written

MOST = 1500
"""Megabytes of a whole process, a third of which PyTorch and nnU-Net take."""

INSPECT = """
import contextlib, io, json, re, resource, sys
from pathlib import Path
from nnunet_genesis.cli import main

def used():
    status = Path("/proc/self/status")
    if status.exists():  # where the peak of getrusage begins with that of the process that started this one
        return int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20


resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))  # so that a failing test does not take the machine along
results = {}
for path in sys.argv[1:]:
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        code = main(["inspect", path])
    results[path] = [code, shown.getvalue(), said.getvalue(), used()]
print(json.dumps(results))
"""

FALLS_BACK = {
    "many convolutions": "n_conv_per_stage",
    "many blocks": "n_conv_per_stage_decoder",
    "many stages": "n_stages",
    "stages in lists": "features_per_stage",
    "a network as activation": "torch.nn.Transformer",
    "wide": "features_per_stage",
}
"""Plans that are not used, since the tensors tell what the network is."""

REFUSED = {
    "expanded.pth": "that repeats fewer values (expanded)",
    "expanded elsewhere.pth": "that repeats fewer values (expanded)",
    "overlapping.pth": "that repeats fewer values (expanded)",
    "compressed.pth": "is compressed, as torch.save never does",
    "one tensor, many names.pth": "gives one tensor too many names",
    "halves of v1.pth": "gives one tensor too many names",
    "encodings.pth": "it encodes texts as no pickle does",
    "a bytearray of a length.pth": "builtins.bytearray",
    "a key of tuples.pth": "it repeats or nests its values beyond reason",
    "a deep key.pth": "it repeats or nests its values beyond reason",
    "lists filled later.pth": "repeats or nests its values beyond reason",
    "a sparse tensor.pth": "it holds tensors of a kind that weights do not have",
    "a tensor of another sign.pth": "holds tensors of a kind that weights do not have",
    "a meta tensor.pth": "it holds tensors of a kind that weights do not have",
    "nested encodings.model": "it encodes texts as no pickle does",
    "repeated encodings.model": "it repeats or nests its values beyond reason",
    "lists filled later.model": "repeats or nests its values beyond reason",
    "a deep member.model": "it repeats or nests its values beyond reason",
    "deep lists.model": "repeats or nests its values beyond reason",
    "a high number in the memo.model": "it is numbered as no program writes it",
    "bytes of a length.model": "that is not nnU-Net v1's",
    "a huge integer.model": "it holds an integer of",
    "an altered function.model": "it alters functions or classes",
}


def test_small_files_stay_small(tmp_path: Path):
    paths = attacks.write(tmp_path)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1_300_000
    command = [sys.executable, "-W", "ignore", "-c", INSPECT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = {Path(path).name: result for path, result in json.loads(done.stdout).items()}
    assert len(results) == len(paths) > 40
    for name, (code, shown, said, used) in results.items():
        assert used < MOST, name
        if name.removesuffix(".pth") in FALLS_BACK:
            assert (code, said) == (0, ""), name
            assert "its plans describe another network, which is not used: it " in shown
            assert FALLS_BACK[name.removesuffix(".pth")] in shown, name
        else:
            assert (code, shown, said.count("\n")) == (1, "", 1), name
            assert len(said) < 1000, name
            assert REFUSED.get(name, "") in said, name
    assert results.keys() >= REFUSED.keys()


def small_network() -> nn.Module:
    return build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)


STEM = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"holds float8_e4m3fn in encoder\.stages\.0\.0\.convs"),
        (lambda tensor: tensor.to(torch.complex64), r"holds complex64 in encoder"),
        (lambda tensor: tensor.to(torch.uint8), r"convs\.0\.conv\.weight holds uint8 in place of numbers with a point"),
        (lambda tensor: tensor > 0, r"conv\.weight holds bool in place of"),
        (lambda tensor: tensor.to_sparse(), r"tensors of a kind that weights do not have \(torch\._utils\._rebuild_sp"),
        (lambda tensor: tensor.to("meta"), r"tensors of a kind that weights do not have \(torch\._utils\._rebuild_meta"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), r"kind that weights do not have \(t"),
        (lambda tensor: tensor.expand(3, *tensor.shape), r"holds a tensor of \(3, 4, 1, 3, 3, 3\) that repeats"),
    ],
)  # fmt: skip
def test_tensors_of_other_kinds_are_one_line(tmp_path: Path, change, message):
    weights = {name: tensor for name, tensor in small_network().state_dict().items() if "all_modules" not in name}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.encoder")}
    assert read_pretrained(written(weights, tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_pretrained(written(weights | {STEM: change(weights[STEM])}, tmp_path / "a.pth"))
    assert "\n" not in str(refusal.value)


def test_a_view_of_a_larger_storage_is_read(tmp_path: Path):
    values = torch.randn(2, *small_network().state_dict()[STEM].shape)
    weights = stock(small_plans())["network_weights"]
    names = [
        name
        for name in weights
        if weights[name] is weights[STEM] or weights[name].data_ptr() == weights[STEM].data_ptr()
    ]
    weights |= dict.fromkeys(names, values[1])
    assert torch.equal(read_pretrained(written(weights, tmp_path / "a.pth")).weights[STEM], values[1])


EVIL = "\x1b]0;evil\x07\x1b[31m\u202eT1\nsecond line"


def test_names_in_a_file_do_not_reach_the_terminal(tmp_path: Path, genesis, capsys):
    content = stock(small_plans()) | {"trainer_name": EVIL}
    content["init_args"]["dataset_json"] = {"channel_names": {"0": EVIL}}
    content["network_weights"][EVIL + "x" * 500] = torch.ones(1)
    assert genesis("inspect", written(content, tmp_path / "a.pth")) == 0
    shown = capsys.readouterr().out
    assert "?]0;evil??[31m?T1 second line" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert shown.count("\n") == 11
    for wrong in ({EVIL: {}}, {"state_dict": {EVIL: torch.ones(1)}}, {"network_weights": content["network_weights"], "init_args":
                  {"plans": {"configurations": {EVIL: {}}}, "configuration": EVIL}, "a": {STEM: 1}}):  # fmt: skip
        assert genesis("inspect", written(wrong, tmp_path / "b\x1b[31m.pth")) in (0, 1)
        said = "".join(capsys.readouterr())
        assert said
        assert all(character.isprintable() or character == "\n" for character in said)


@pytest.mark.parametrize("name", ["", "  "])
def test_channels_without_a_name_are_unnamed(name):
    from nnunet_genesis.checkpoints.detect import detect

    content: dict[str, Any] = stock(small_plans())
    content["init_args"]["dataset_json"] = {"channel_names": {"0": name}}
    assert detect(content).channels is None
