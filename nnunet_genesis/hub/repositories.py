"""An address on the hub → files in the cache of the hub's own client, or one line on why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_genesis.checkpoints.foreign import ENDINGS
from nnunet_genesis.checkpoints.formats.published import CASES, CONFIG
from nnunet_genesis.errors import GenesisError, HubError, printable, reason
from nnunet_genesis.files import sha256
from nnunet_genesis.hub.addresses import HUB, HubAddress, hub_address, is_plain_path, shown_address

LARGEST = 1 << 34
"""Bytes of a checkpoint: with the optimiser's state, the largest published ones take half of it."""
MOST_SHOWN = 12

MESSAGES = (
    # error of the hub's client -> what it means; the first that fits
    ("GatedRepoError", "is given out to those who have accepted its terms. Accept them at {page}, then log in: hf auth "
                       "login, or set HF_TOKEN."),
    ("RepositoryNotFoundError", "does not exist, or is private. Correct the name, or log in: hf auth login, or set "
                                "HF_TOKEN."),
    ("RevisionNotFoundError", "has no such revision. Name a branch, a tag or a commit after the @."),
    ("LocalEntryNotFoundError", "is not in the cache, or not all of it, and the hub is not asked (HF_HUB_OFFLINE). "
                                "Fetch it once with a network, or copy the cache (HF_HOME)."),
    ("OfflineModeIsEnabled", "needs the hub, which is not asked (HF_HUB_OFFLINE). Unset that."),
    ("EntryNotFoundError", "has no such file. Leave the file out, and its checkpoints are listed."),
)  # fmt: skip


def fetched(address: HubAddress) -> Path:
    """Bring a checkpoint, and what belongs to it, into the client's cache; with HF_HUB_OFFLINE, find it there.

    Returns:
        The file in the cache; its path tells the commit.

    Raises:
        HubError: It is not there, is not given to this user, is no single checkpoint, or the hub cannot be reached.
    """
    from huggingface_hub import constants

    with in_words(address):
        return _from_cache(address) if constants.HF_HUB_OFFLINE else _from_hub(address)


def choose(names: Sequence[str], address: HubAddress) -> str:
    """The one checkpoint that an address stands for among the files of a repository.

    Raises:
        HubError: There is none, or there are several; the message lists them.
    """
    if address.file in names:
        return address.file
    found = sorted(name for name in names if name.endswith(ENDINGS))
    inside = [name for name in found if name.startswith(f"{address.file}/") or not address.file]
    if len(inside) == 1:
        return inside[0]
    listed = [f"{HubAddress(address.repo, address.revision, name)}" for name in inside or found]
    more = f", and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else ""
    shown = printable(", ".join(listed[:MOST_SHOWN])) + more
    if inside:
        raise HubError(f"{address} holds {len(inside)} checkpoints. Name one of them: {shown}.")
    if found:
        raise HubError(f"{address} is not in the repository. Its checkpoints are {shown}.")
    others = printable(", ".join(sorted(names)[:MOST_SHOWN]), 500)
    raise HubError(f"{address} holds no checkpoint ({', '.join(ENDINGS)}), but {others or 'nothing'}.")


def beside(file: str, names: Sequence[str]) -> list[str]:
    """Files that say more about a checkpoint, where the repository has them: of `card`, and of nnU-Net v1."""
    folder = file[: file.rfind("/") + 1]
    return [name for name in (f"{folder}{CONFIG}", f"{folder}{CASES}", f"{file}.pkl")
            if name in names and (name == f"{file}.pkl" or file.endswith(".safetensors"))]  # fmt: skip


def _from_hub(address: HubAddress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
    files = {entry.rfilename: entry for entry in info.siblings or ()}
    if strange := [name for name in files if not is_plain_path(name)]:
        raise HubError(f"{address} lists the file {printable(strange[0], 100)}, which leads out of it. Distrust it.")
    first = choose(list(files), address)
    # by the name that the user gave: so the client notes what it stands for, for use without a network
    path, revision = None, address.revision
    for name in (first, *beside(first, list(files))):
        _refuse_large(files[name], address)
        got = Path(hf_hub_download(address.repo, name, revision=revision))
        _refuse_altered(got, files[name], address)
        path, revision = path or got, info.sha
    if path is None or info.sha not in path.parts:
        raise HubError(f"{address} was changed while it was fetched. Run the same command again.")
    return path


def _from_cache(address: HubAddress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(address.repo, revision=address.revision, local_files_only=True))
    except LocalEntryNotFoundError as error:  # other files of the repository may be missing
        if not hasattr(error, "snapshot_path"):
            raise
        folder = Path(error.snapshot_path)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if address.file and address.file not in names and not any(name.startswith(f"{address.file}/") for name in names):
        raise LocalEntryNotFoundError(address.file)
    return folder / choose(names, address)


def _refuse_large(file: Any, address: HubAddress) -> None:
    if file.size is None or file.size > LARGEST:
        size = "no size" if file.size is None else f"{file.size / (1 << 30):.1f} GiB"
        raise HubError(
            f"{address}: {printable(file.rfilename, 100)} has {size}; up to {LARGEST >> 30} GiB are fetched. Download "
            "it yourself (hf download), and name the file."
        )


def _refuse_altered(path: Path, file: Any, address: HubAddress) -> None:
    """Compare with the digest that the hub keeps of large files."""
    if path.stat().st_size != file.size or (file.lfs is not None and sha256(path) != file.lfs.sha256):
        raise HubError(
            f"{address} has arrived as another file than the hub announces ({path.resolve()}). Delete that file, and "
            "run the same command again."
        )


@contextmanager
def in_words(address: HubAddress) -> Iterator[None]:
    """Say what the hub's client raises in one line, with what to do next."""
    from huggingface_hub import constants, errors

    server = shown_address(constants.ENDPOINT)  # a mirror's may hold a password
    page = f"{server}/{address.repo}"
    try:
        yield
    except GenesisError:
        raise
    except Exception as raised:  # its network library changes, and with it what is raised
        error: Any = raised
        if isinstance(error, errors.LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            error = error.__cause__ or error  # it looked into the cache because of this
        for name, text in MESSAGES:
            if isinstance(error, getattr(errors, name)):
                raise HubError(f"{address} {text.format(page=page)}") from None
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
            code = error.response.status_code
            raise HubError(f"{address}: {server} answers {code} ({_said(error)}). {_advice(code)}") from None
        said = reason(error).replace(constants.ENDPOINT, server)[:150]
        raise HubError(
            f"{address} cannot be reached: {server} does not answer as a hub does "
            f"({type(error).__name__}: {said}). Check the network (HF_ENDPOINT, proxies); with HF_HUB_OFFLINE=1 what "
            f"is in the cache is used."
        ) from None


def _said(error: Any) -> str:
    return printable(error.server_message or type(error).__name__, 150)


def _advice(code: int) -> str:
    if code in (401, 403):
        return "Log in with a token that may do this: hf auth login, or set HF_TOKEN."
    return "Try again later."


def repository(text: str) -> HubAddress:
    """An address that names a whole repository, for what is written to it."""
    address = hub_address(text)
    if address.revision or address.file:
        raise HubError(f"{address} names more than a repository. Write {HUB}{address.repo}.")
    return address
