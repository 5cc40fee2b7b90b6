"""Small files that ask for much memory or time, written by hand or with torch."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints.files import small_plans, stock
from tests.checkpoints.replicas import generic_unet

MANY = 10**10


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def call(name: str, *arguments: bytes) -> bytes:
    return b"c" + name.replace("/", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def as_dictionary(value: bytes) -> bytes:
    return pickled(b"}", text("plans"), value, b"s")


ENCODE = "_codecs/encode"


def nested_encodings(levels: int = 34) -> bytes:
    """Every level has twice the bytes of the one below."""
    value = call(ENCODE, text("aaaa"), text("latin1"))
    for _ in range(levels):
        value = call(ENCODE, value, text("hex"))
    return as_dictionary(value)


def repeated_encodings() -> bytes:
    """A long text, remembered and encoded many times."""
    again = b"c_codecs\nencode\nq\x01(h\x00h\x02tq\x030]" + b"h\x01h\x03Ra" * 90_000
    return pickled(text("a" * 200_000) + b"q\x000", text("latin1") + b"q\x020", again)


def lists_of_lists(levels: int = 40) -> bytes:
    """A list with ten times a list with ten times …, the innermost first."""
    made = [b"](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level]) for level in range(1, levels)]
    return as_dictionary(b"](]q\x00" + b"".join(made) + b"e")


def lists_filled_later(levels: int = 40) -> bytes:
    """The same, the outermost first: no list is long when it is put into another."""
    made = b"".join(b"]q" + bytes([level]) for level in range(levels))
    filled = b"".join(b"h" + bytes([n]) + b"(" + (b"h" + bytes([n + 1])) * 10 + b"e" for n in range(levels - 1))
    return as_dictionary(b"](" + made + filled + b"e")


def tuple_as_key(levels: int = 40) -> bytes:
    """A key that is numbered in 2 ** levels steps."""
    return pickled(b"}", b"Nq\x00", b"h\x00\x86q\x00" * levels, b"Ns")


def deep_key(levels: int) -> bytes:
    """A key that is nested too deeply for the machine's stack."""
    return pickled(b"}", b"N" + b"\x85" * levels, b"Ns")


def deep_lists(levels: int) -> bytes:
    return as_dictionary(b"]" * levels + b"a" * (levels - 1))


ARRAY = "numpy.core.multiarray/_reconstruct"
NDARRAY = "numpy/ndarray"
SIDECARS: dict[str, bytes] = {
    "nested encodings": nested_encodings(),
    "repeated encodings": repeated_encodings(),
    "lists of lists": lists_of_lists(),
    "lists filled later": lists_filled_later(),
    "a key of tuples": tuple_as_key(),
    "a deep key": deep_key(500_000),
    "a deep member": as_dictionary(
        b"ccollections\nOrderedDict\n]](N" + b"\x85" * 500_000 + b"Nea\x85R"
    ),
    "deep lists": deep_lists(60_000),
    "a high number in the memo": pickled(b"}r\xff\xff\xff\x7f"),
    "bytes of a length": as_dictionary(call("__builtin__/bytes", number(MANY))),
    "an array of a shape": as_dictionary(call(NDARRAY, number(MANY) + b"\x85", text("b"))),
    "an array filled": as_dictionary(
        call(ARRAY, b"cnumpy\nndarray\n", b"K\x00\x85", text("b"))
        + b"(K\x01" + number(MANY) + b"\x85" + call("numpy/dtype", text("b"), b"K\x00", b"K\x01") + b"\x89C\x01atb"
    ),
    "an array of nothing": as_dictionary(
        call(ARRAY, b"cnumpy\nndarray\n", b"K\x00\x85", text("b"))
        + b"(K\x01" + number(10**15) + b"\x85" + call("numpy/dtype", text("S0"), b"K\x00", b"K\x01") + b"\x89C\x00tb"
    ),
    "a long text of numpy": as_dictionary(
        call("numpy.core.multiarray/scalar", call("numpy/dtype", text("S1000000000"), b"K\x00", b"K\x01"), b"C\x01a")
    ),
    "a huge integer": as_dictionary(b"\x8b" + struct.pack("<i", 900_000) + b"\x01" * 900_000),
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", MANY) + b"}.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", MANY) + b"a.",
    "an integer in digits": pickled(b"}", text("plans"), b"L" + b"9" * 900_000 + b"L\n", b"s"),
    "many empty lists": pickled(b"}", text("plans"), b"(" + b"]" * 100_000 + b"l", b"s"),
    "many operations": pickled(b"}", b"h\x00".join([b"q\x00"] * 50_000)),
    "an altered function": pickled(b"c_codecs\nencode\n", b"}b"),
}  # fmt: skip
"""Name → file of plans beside a checkpoint of nnU-Net v1."""


def zipped(content: Any, change: Callable[[bytes], bytes] = bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch with its pickle changed, or compressed."""
    original, written = io.BytesIO(), io.BytesIO()
    torch.save(content, original)
    with zipfile.ZipFile(original) as archive, zipfile.ZipFile(written, "w", compression) as copy:
        for name in archive.namelist():
            data = archive.read(name)
            copy.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return written.getvalue()


def saved(content: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _plans_with(**changes: Any) -> dict[str, Any]:
    plans = small_plans()
    content = stock(plans)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= changes
    return content


def _plans_of_2023(count: int) -> dict[str, Any]:
    content = stock(small_plans())
    old = content["init_args"]["plans"]["configurations"]["3d_fullres"]
    del old["architecture"]
    old |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 6,
            "n_conv_per_stage_encoder": 2, "n_conv_per_stage_decoder": 2, "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": [2] * count, "conv_kernel_sizes": [3] * count}  # fmt: skip
    return content


def _legacy_storage() -> bytes:
    """The content names a storage of 40 GB; the list of storages that are read is empty."""
    whole = io.BytesIO(saved({"fc": torch.ones(4)}, legacy=True))
    parts = []
    for _ in range(4):
        start = whole.tell()
        for _ in pickletools.genops(whole):
            pass
        parts.append(whole.getvalue()[start : whole.tell()])
    parts[3] = parts[3].replace(b"K\x04N", number(MANY) + b"N").replace(b"K\x04\x85", number(MANY) + b"\x85")
    return b"".join(parts) + pickled(b"]")


def checkpoints() -> dict[str, bytes]:
    """Name → checkpoint."""
    one = torch.ones(1, 1, 1, 1, 1)
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    large = torch.ones(200_000)
    layers = {f"encoder.stages.{n // 4000}.0.convs.{n % 4000}.conv.weight": one for n in range(8000)}
    halves = {f"conv_blocks_localization.0.{n % 2}.blocks.{n}.conv.weight": one for n in range(9000)}
    return {
        "expanded": saved({"state_dict": {stem: torch.ones(1).expand(MANY)}}),
        "expanded elsewhere": saved({"log": torch.ones(1).expand(MANY), "state_dict": {stem: one}}),
        "overlapping": saved({stem: torch.ones(20_000).as_strided((10_000, 10_000), (1, 1))}),
        "many convolutions": saved(_plans_with(n_conv_per_stage=[3_000_000, 2, 2])),
        "many blocks": saved(_plans_with(n_conv_per_stage_decoder=[10**9, 2])),
        "many stages": saved(_plans_with(n_stages=10**9, features_per_stage=4, strides=2, kernel_sizes=3)),
        "stages in lists": saved(_plans_with(features_per_stage=[4] * 10_000, strides=[[1] * 3] * 10_000)),
        "a network as activation": saved(_plans_with(
            nonlin="torch.nn.Transformer", nonlin_kwargs={"num_encoder_layers": 10**5})),
        "wide": saved(_plans_with(features_per_stage=[10**9] * 3)),
        "plans of 2023": saved(_plans_of_2023(20_000)),
        "a chain of plans": saved(stock(small_plans()) | {"init_args": {"configuration": "0", "plans": {
            "configurations": {str(n): {"inherits_from": str(n + 1)} for n in range(5_000)}}}}),
        "compressed": zipped({stem: torch.zeros(5_000_000)}, compression=zipfile.ZIP_DEFLATED),
        "one tensor, many names": saved({f"encoder.stages.0.0.convs.0.all_modules.{n}.weight": large
                                         for n in range(8_000)}),
        "convolutions by name": saved({**layers, "down": one}),
        "halves of v1": saved(generic_unet([2, 2], [[2, 2, 2]]) | halves),
        "encodings": zipped({"a": 1}, lambda _: nested_encodings()),
        "a bytearray of a length": zipped({"a": 1}, lambda _: as_dictionary(call("builtins/bytearray", number(MANY)))),
        "a tensor of a length": zipped({"a": 1}, lambda _: as_dictionary(call("torch/FloatTensor", number(MANY)))),
        "a key of tuples": zipped({"a": 1}, lambda _: tuple_as_key()),
        "a deep key": zipped({"a": 1}, lambda _: deep_key(300_000)),
        "lists filled later": zipped({"a": 1}, lambda _: lists_filled_later()),
        "legacy": _legacy_storage(),
        "a long name": saved({"state_dict": {"a" * 900_000: one, "\x1b[31m" * 1000: one}}),
        "a long header": struct.pack("<Q", MANY) + b'{"a":' + b"[" * 100_000,
        "deep JSON": struct.pack("<Q", 900_005) + b'{"a":' + b"[" * 900_000,
        "many sets": zipped({"a": 1}, lambda _: as_dictionary(b"(" + b"\x8f" * 100_000 + b"t")),
        "a sparse tensor": saved({stem: torch.sparse_coo_tensor(size=(10**6, 10**6))}),
        "a tensor of another sign": saved({stem: torch._neg_view(one.clone())}),
        "a meta tensor": saved({stem: torch.ones(10**6, 10**6, device="meta")}),
    }  # fmt: skip


def write(folder: Path) -> list[Path]:
    """All of them; the checkpoints to look at."""
    written = []
    for name, content in checkpoints().items():
        written.append(folder / f"{name}.pth")
        written[-1].write_bytes(content)
    for name, content in SIDECARS.items():
        written.append(folder / f"{name}.model")
        torch.save({"state_dict": generic_unet([4, 6], [[1, 2, 2]])}, written[-1])
        written[-1].with_name(f"{name}.model.pkl").write_bytes(content)
    return written
