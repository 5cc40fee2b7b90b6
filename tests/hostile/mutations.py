"""A valid file → a damaged or malicious one, all choices from a seeded generator."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TRAP = "hostile_trap"
"""A module that leaves the file `ran` in the working folder when it is imported; see `cases`."""
NAMES = (f"{TRAP}.Conv3d", f"{TRAP}.PlainConvUNet", "os.system", "subprocess.Popen", "torch.hub.load", "builtins.exec",
         "torch.nn.modules.conv.os", "nnunet_genesis.cli.main", "unknown", "np")  # fmt: skip
PATHS = ("../escaped", "../../escaped", "../../../escaped", "/tmp/genesis-escaped", "a/b", "..", ".", "", "a\\b", "a\0b",
         "\x1b[2Jcleared", "~", "$HOME", "x" * 5000, "name\nwith line", "-rf", "*", "\ud800")  # fmt: skip
NUMBERS = (0, -1, 10**6, 2**31, 2**63, 10**30, 1e308, -1e308, 0.5, float("nan"), float("inf"), 1e-300)
PAYLOAD = b"cposix\nsystem\n(S'touch ran'\ntR0"
TRAPPED = b"chostile_trap\nConv3d\n)R0"

Mutation = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, more of them near the start."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 32))):
        place = int(len(changed) * rng.random() ** rng.choice((1, 4)))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(content: bytes, rng: random.Random) -> bytes:
    """Cut off, at times to nothing."""
    return content[: int(len(content) * rng.choice((0, rng.random(), 0.999)))]


def inserted(content: bytes, rng: random.Random) -> bytes:
    """A block of random bytes, or one of its own, put in between."""
    place, size = rng.randrange(len(content)), rng.choice((1, 8, 512))
    start = rng.randrange(len(content))
    block = rng.choice((rng.randbytes(size), content[start : start + size]))
    return content[:place] + block + content[place:]


def zeroed(content: bytes, rng: random.Random) -> bytes:
    """A span of zeros."""
    start, size = rng.randrange(len(content)), rng.choice((1, 8, 64, 4096))
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


BYTES: dict[str, Mutation] = {"flip": flipped, "truncate": truncated, "insert": inserted, "zero": zeroed}


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file replaced, or the text nested, doubled or emptied."""
    how = rng.random()
    if how < 0.05:
        depth = rng.choice((60, 2_000, 100_000))
        return rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    if how < 0.1:
        return rng.choice((b"", b"null", b"[]", b"{}", b"3", b'"a"', b"\xff\xfe", b"9" * 5000))
    value = json.loads(content)
    if how < 0.15:
        key = rng.choice(list(value))
        return b"{" + json.dumps(key).encode() + b": 1, " + json.dumps(value).encode()[1:]
    changed_value(value, rng)
    return json.dumps(value).encode()


def changed_value(value: Any, rng: random.Random) -> None:
    """Replace, remove or rename one value somewhere inside, in place."""
    places = list(_places(value))
    # half of the time among the names and numbers that decide what is built and written
    telling = [(block, key) for block, key in places if isinstance(block[key], str | int) or key in TELLING]
    block, key = rng.choice(telling if telling and rng.random() < 0.5 else places)
    how = rng.random()
    if how < 0.15 and isinstance(block, dict):
        del block[key]
    elif how < 0.25 and isinstance(block, dict):
        block[rng.choice(PATHS)] = block.pop(key)
    elif how < 0.45:
        block[key] = rng.choice(NUMBERS)
    elif how < 0.65:
        block[key] = rng.choice(NAMES)
    elif how < 0.85:
        block[key] = rng.choice(PATHS)
    else:
        block[key] = rng.choice(([], {}, None, True, [[]], {"a": {"b": []}}, [block[key]] * 3, {"0": block[key]},
                                 [1] * 10_000, {str(number): "T1" for number in range(10_000)}))  # fmt: skip


TELLING = ("data_identifier", "dataset_name", "plans_name", "channel_names", "labels", "patch_size", "file_ending")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def changed_tensors(path: Path, rng: random.Random) -> None:
    """Rewrite a checkpoint with another tensor or another value beside the tensors."""
    if path.suffix == ".safetensors":
        weights = load_file(path)
        _change_one(weights, rng)
        held = {name: t.contiguous() for name, t in weights.items() if not t.is_complex() and t.numel() < 10**6}
        save_file(held, path)
        return
    content = torch.load(path, map_location="cpu", weights_only=False)
    nested = [content[key] for key in ("network_weights", "state_dict") if key in content]
    weights = nested[0] if nested else content
    beside = {key: value for key, value in content.items() if value is not weights}
    if nested and rng.random() < 0.5 and list(_places(beside)):
        changed_value(beside, rng)
        content = {**beside, **{key: content[key] for key in content if content[key] is weights}}
    else:
        _change_one(weights, rng)
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)


def _change_one(weights: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(list(weights))
    tensor = weights[name].clone()
    how = rng.randrange(10)
    if how == 0:
        weights[name] = tensor.to(rng.choice((torch.int8, torch.bool, torch.half, torch.int64, torch.complex64)))
    elif how == 1:
        weights[name] = tensor.flatten()[: rng.randrange(3)]
    elif how == 2:
        weights[name] = tensor[None] if rng.random() < 0.5 else tensor.sum()
    elif how == 3:
        weights[name] = torch.full_like(tensor, rng.choice((float("nan"), float("inf"), 1e38)))
    elif how == 4:
        del weights[name]
    elif how == 5:
        weights[rng.choice(("", "a/b", "encoder.stages.99.0.convs.0.conv.weight", "\x1b[2J", "x" * 5000))] = tensor
    elif how == 6:
        weights[rng.choice((f"module.{name}", f"{name}.{name}", name.upper()))] = weights.pop(name)
    elif how == 7:  # a few bytes in the file, without bounds in memory
        weights[name] = torch.zeros(1).expand(
            rng.choice(((10**6, 10**6), (1, 10**9, 3, 3, 3), (10**5, 10**5, 1, 1, 1)))
        )
    elif how == 8:
        weights[name] = tensor.repeat(rng.choice((2, 3)), *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor[None]
    else:
        weights[name] = torch.zeros((0, *tensor.shape[1:]))


def changed_pickle(content: bytes, rng: random.Random) -> bytes:
    """Opcodes put into or changed in a pickle; in that of a zip archive if it is one."""
    if content[:2] != b"PK":
        return _surgery(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, _surgery(entry, rng) if name.endswith("data.pkl") else entry)
    return made.getvalue()


def _surgery(content: bytes, rng: random.Random) -> bytes:
    start = 2 if content[:1] == b"\x80" else 0
    head, body = content[:start], content[start:]
    place = rng.randrange(max(1, len(body)))
    end = body.rfind(b".")
    return rng.choice((
        lambda: head + rng.choice((PAYLOAD, TRAPPED)) + body,
        lambda: head + body[:end] + rng.choice((PAYLOAD, TRAPPED)) + body[end:],
        lambda: body.join((head, b"")).replace(b"collections\nOrderedDict", b"hostile_trap\nConv3d"),
        lambda: content.replace(b"_rebuild_tensor_v2", b"_rebuild_parameter"),
        lambda: head + b"(" * 100_000 + body,
        lambda: head + b"]" * 100_000 + b"a" * 99_000 + body,
        lambda: head + b"\x8e" + (2**40).to_bytes(8, "little") + body,  # BINBYTES8 of a terabyte
        lambda: head + b"\x8b" + (2**31 - 1).to_bytes(4, "little") + body,  # LONG4 of two gigabytes
        lambda: head + b"r" + (2**32 - 1).to_bytes(4, "little") + body,  # LONG_BINPUT far out in the memo
        lambda: head + body[:place] + bytes([rng.choice(b"R}]bucie\x81\x93\x94tos0Nh")]) + body[place:],
        lambda: head + body[:place] + bytes([rng.choice(b"R}]bucie\x81\x93\x94tos0Nh")]) + body[place + 1 :],
        lambda: pickle.dumps(rng.choice(([], 3, None, {"a": b"b"}, {}, {"plans": []}, {3: 4}))),
    ))()  # fmt: skip
