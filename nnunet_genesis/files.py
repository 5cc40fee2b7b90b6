"""Files that are either complete or not there: temporary name first, renamed when finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError


@contextmanager
def written_atomically(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path (same ending as `path`); rename it to `path` when the block ends well.

    The temporary file is removed when the block raises; a killed process leaves it behind, and the next write
    of the same file replaces it.

    Args:
        path: The file to write.
        folder: Where the temporary file lies, on the same file system; beside `path` by default. nnU-Net takes
            every file in `imagesTr` and in preprocessed folders for a case: for these, name another folder.
    """
    temporary = (folder or path.parent) / f".incomplete_{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(content: Any, path: Path) -> None:
    """Write `content` as indented JSON, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


def read_json(path: Path, what: str, advice: str) -> Any:
    """Read the JSON file `path`.

    Args:
        path: The file.
        what: What the file is, for the error message, e.g. "the plans file".
        advice: What the user should do when it is missing.

    Raises:
        DatasetError: The file is missing or is no valid JSON.
    """
    if not path.is_file():
        raise DatasetError(f"{what} {path} does not exist. {advice}")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{what} {path} is not valid JSON ({error}). {advice}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
