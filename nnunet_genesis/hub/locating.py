"""What a user names as a checkpoint (path, folder of `card`, address) → a file on this machine; where it came from."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_genesis.checkpoints.formats.published import WEIGHTS, is_published
from nnunet_genesis.errors import HubError
from nnunet_genesis.files import read_json
from nnunet_genesis.hub.addresses import HUB, WEB, hub_address, in_full, is_address, shown_address
from nnunet_genesis.hub.downloads import SOURCE, cache_folder, downloaded
from nnunet_genesis.hub.repositories import fetched

SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$")
"""A file in the cache of the hub's client: owner, repository, commit, file."""


def located(checkpoint: str | Path) -> Path:
    """The file that a checkpoint's path or address stands for; it is downloaded if it is not there yet.

    Args:
        checkpoint: Path of a file or of a folder that `nnunet_genesis card` wrote, `hf://owner/repo[@revision][/file]`,
            or `https://…`. What is no address is returned as it is.

    Raises:
        HubError: The address is none, or what it names cannot be fetched.
    """
    text = in_full(str(checkpoint))
    if text.startswith(HUB):
        return fetched(hub_address(text))
    if text.startswith(WEB):
        return downloaded(text)
    if is_address(text):
        raise HubError(f"{shown_address(text)} cannot be fetched. Name a file, {HUB}owner/repo or {WEB[0]}…")
    path = Path(checkpoint)
    return path / WEIGHTS if is_published(path) else path


def origin(path: Path) -> str | None:
    """The address, with commit, that a file in a cache came from; None for the user's own files."""
    if found := SNAPSHOT.search(path.as_posix()):
        owner, repo, commit, file = found.groups()
        return f"{HUB}{owner}/{repo}@{commit}/{file}"
    if path.parent.parent == cache_folder():
        return str(read_json(path.with_name(SOURCE), "What is known of a download,", "Remove its folder.")["address"])
    return None


def source_of(path: Path) -> str:
    """A checkpoint's origin for a record; of the user's own files the end of the path, which names no person."""
    return origin(path) or (path.name if path.parent == Path() else "/".join(path.parts[-3:]))
