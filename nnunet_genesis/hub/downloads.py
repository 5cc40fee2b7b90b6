"""`https://…` → a file in the cache, whole and of a known kind, with its digest beside it."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urljoin

from filelock import FileLock
from tqdm import tqdm

from nnunet_genesis.checkpoints.foreign import refuse_other_kinds
from nnunet_genesis.errors import CheckpointError, HubError, printable, reason
from nnunet_genesis.files import read_json, sha256, write_json, written_atomically
from nnunet_genesis.hub.addresses import THIS_MACHINE, file_name, web_address, without_secrets
from nnunet_genesis.hub.repositories import LARGEST

SOURCE = "source.json"
"""Beside a downloaded file: address, digest, size."""
SECONDS = 30
"""Without a byte, before a download is given up."""
BLOCK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: `nnunet_genesis` in XDG_CACHE_HOME, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunet_genesis"


def downloaded(address: str) -> Path:
    """The file that an address on the web names. It is fetched once; what is in the cache is not asked for again.

    Raises:
        HubError: The address is not followed, or does not lead to a whole checkpoint; nothing is kept then.
    """
    parts = web_address(address)
    folder = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / file_name(parts)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not path.is_file():
            _fetch(address, parts, path)
        known = read_json(path.with_name(SOURCE), "What is known of a download,", f"Remove {folder}.")
        if known.get("sha256") != sha256(path):
            raise HubError(f"{path} was altered since it was downloaded. Remove {folder}, and it is fetched again.")
    return path


def _fetch(address: str, parts: SplitResult, path: Path) -> None:
    shown = without_secrets(parts)
    with _in_words(shown), written_atomically(path) as temporary:
        with _opened(address, parts.hostname in THIS_MACHINE) as answer, temporary.open("wb") as stream:
            _copy(answer, stream, shown)
        try:
            refuse_other_kinds(temporary)
        except CheckpointError as error:
            raise HubError(str(error).replace(str(temporary), f"What {shown} leads to")) from None
        facts = {"address": shown, "sha256": sha256(temporary), "bytes": temporary.stat().st_size}
        write_json(facts, path.with_name(SOURCE))


def _copy(answer: Any, stream: IO[bytes], shown: str) -> None:
    """Write what arrives, up to what was announced and to what a checkpoint may have."""
    text = answer.headers.get("Content-Length", "")
    announced = int(text) if text.isdecimal() and len(text) < 20 else None
    if (announced or 0) > LARGEST:
        raise HubError(f"{shown} has {announced:,} bytes; up to {LARGEST >> 30} GiB are fetched. Download it yourself.")
    arrived = 0
    # without a terminal, no bar
    with tqdm(total=announced, desc=file_name(web_address(shown)), unit="B", unit_scale=True, disable=None) as bar:
        while block := answer.read(BLOCK):
            arrived += len(block)
            if arrived > LARGEST:
                raise HubError(f"{shown} sends more than {LARGEST >> 30} GiB. Download it yourself.")
            stream.write(block)
            bar.update(len(block))
    if announced is not None and arrived != announced:
        raise HubError(f"{shown} broke off after {arrived:,} of {announced:,} bytes. Run the same command again.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that a user may name too."""

    def __init__(self, from_this_machine: bool) -> None:
        self.from_this_machine = from_this_machine

    def http_error_302(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        target = urljoin(req.full_url, headers.get("Location", ""))
        web_address(target, self.from_this_machine)
        fp.close()  # urllib would read all of the answer, however long, and follow other headers too
        only = HTTPMessage()
        only["Location"] = target
        return super().http_error_302(req, io.BytesIO(), code, msg, only)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opened(address: str, from_this_machine: bool) -> Any:
    opener = urllib.request.build_opener(_Redirects(from_this_machine))
    agent = f"nnunet-genesis/{version('nnunet-genesis')}"
    request = urllib.request.Request(address, headers={"User-Agent": agent, "Accept-Encoding": "identity"})
    return opener.open(request, timeout=SECONDS)


@contextmanager
def _in_words(shown: str) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise HubError(f"{shown} answers {error.code} ({printable(error.reason, 100)}). Check the address.") from None
    except UnicodeError:
        raise HubError(f"{shown} has letters that no address has. Write them as %XX, as a browser does.") from None
    except (HTTPException, OSError) as error:
        raise HubError(
            f"{shown} cannot be fetched ({reason(error, 150)}). Check network and address, or download it yourself."
        ) from None
