"""`hf://owner/repo[@revision][/file]` and `https://…` → what they name, after a check that they can be followed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from nnunet_genesis.errors import HubError, printable

HUB = "hf://"
WEB = ("https://", "http://")
FORM = "hf://owner/repo, hf://owner/repo@revision or hf://owner/repo@revision/file"

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
"""Of an owner or a repository, as the hub allows it."""
OTHER_KINDS = ("datasets", "spaces", "buckets")
"""In the owner's place they begin the names of repositories that hold no models."""
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub, one of its revisions, and a file or folder in it.

    Attributes:
        repo: `owner/repo`.
        revision: Branch, tag or commit; None for the repository's main branch.
        file: Path in the repository; "" where none was named.
    """

    repo: str
    revision: str | None = None
    file: str = ""

    def __str__(self) -> str:
        """As it was written."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{HUB}{self.repo}{revision}{self.file and '/'}{self.file}"


def is_address(text: str) -> bool:
    """Whether a text is an address, not a path."""
    return "://" in text


def in_full(text: str) -> str:
    """An address that went through `pathlib`, which takes two slashes for one, as it was; other texts as they are."""
    return re.sub(r"^(hf|https?):/(?=[^/])", r"\1://", text)


def hub_address(text: str) -> HubAddress:
    """Read an address on the hub; a revision with slashes is written with %2F.

    Raises:
        HubError: It is none.
    """
    shown = printable(text, 200)
    repo, _, file = text.removeprefix(HUB).partition("/")
    name, _, file = file.partition("/")
    name, given, revision = name.partition("@")
    repo, revision = f"{repo}/{name}", unquote(revision)
    if repo.partition("/")[0] in OTHER_KINDS:
        raise HubError(f"{shown} names no repository of models. Write {FORM}.")
    if not text.startswith(HUB) or not all(NAME.fullmatch(part) for part in repo.split("/")) or ".." in repo:
        raise HubError(f"{shown} is no address of a repository. Write {FORM}.")
    if (given and not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", revision, re.ASCII)) or ".." in revision:
        raise HubError(f"{shown} names no revision after the @. Write {FORM}.")
    if file and not is_plain_path(file := file.rstrip("/")):
        raise HubError(f"{shown} names no file in a repository. Write {FORM}.")
    return HubAddress(repo, revision or None, file)


def is_plain_path(file: str) -> bool:
    """Whether a path in a repository stays in it."""
    parts = file.split("/")
    return file.isprintable() and "\\" not in file and not any(part.strip() in ("", ".", "..") for part in parts)


def web_address(text: str, from_this_machine: bool = True) -> SplitResult:
    """Read an address on the web. What travels unencrypted may be changed on its way: that is for this machine alone.

    Args:
        text: The address.
        from_this_machine: Whether nothing but this machine has led to it.

    Raises:
        HubError: It is none, is not encrypted, or has a password in it.
    """
    shown = shown_address(text)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise HubError(f"{shown} is no address on the web. Write https://…") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in THIS_MACHINE and from_this_machine):
        raise HubError(
            f"{shown} is refused: files are fetched over https only. Write https://…, or download it yourself."
        )
    if not host or parts.username or parts.password:
        raise HubError(f"{shown} is no address of a server without user and password. Download the file yourself.")
    return parts


def shown_address(text: str) -> str:
    """What a message may show of an address, also of one that cannot be read: no user, password, query or fragment."""
    return printable(re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", re.split("[?#]", text, maxsplit=1)[0]), 200)


def without_secrets(parts: SplitResult) -> str:
    """An address for records: without user, password, query and fragment, which may hold keys."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def file_name(parts: SplitResult) -> str:
    """The file that an address on the web ends with; `checkpoint` if it does not tell."""
    name = unquote(parts.path).rpartition("/")[2]
    return name if re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,150}", name, re.ASCII) else "checkpoint"
