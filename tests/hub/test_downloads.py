"""`https://`, here from a server on this machine, which may be asked unencrypted: whole files of a known kind, or none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request

import pytest

from nnunet_genesis.errors import HubError
from nnunet_genesis.files import sha256
from nnunet_genesis.hub import downloads
from nnunet_genesis.hub.downloads import _Redirects, cache_folder
from nnunet_genesis.hub.locating import located, origin


def kept() -> list[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"]


def fails(text: str, words: str) -> str:
    with pytest.raises(HubError, match=words) as error:
        located(text)
    assert str(error.value).isprintable()
    assert not kept()
    return str(error.value)


def test_a_file_is_fetched_once_and_its_address_and_digest_are_written_down(hub, content):
    hub.pages["/a/w.pth"] = (200, {}, content)
    path = located(f"{hub.url}/a/w.pth?token=secret")
    assert (path.name, path.read_bytes()) == ("w.pth", content)
    facts = json.loads(path.with_name("source.json").read_text())
    assert facts == {"address": f"{hub.url}/a/w.pth", "sha256": sha256(path), "bytes": len(content)}
    assert origin(path) == f"{hub.url}/a/w.pth"
    hub.pages.clear()
    assert located(Path(f"{hub.url}/a/w.pth?token=secret")) == path
    assert len(hub.requests) == 1
    assert "secret" not in " ".join(map(str, kept()))


def test_what_was_altered_in_the_cache_is_not_used(hub, content):
    hub.pages["/w.pth"] = (200, {}, content)
    path = located(f"{hub.url}/w.pth")
    path.write_bytes(content[::-1])
    with pytest.raises(HubError, match="was altered since it was downloaded"):
        located(f"{hub.url}/w.pth")


def test_redirects_are_followed_and_the_address_that_was_named_is_written_down(hub, content):
    hub.pages |= {"/w.pth": (302, {"Location": "/far"}, b""), "/far": (200, {}, content)}
    path = located(f"{hub.url}/w.pth")
    assert path.read_bytes() == content
    assert origin(path) == f"{hub.url}/w.pth"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://example.org/x", "http://example.org/x", "//example.org/x"]
)
def test_redirects_to_files_and_to_unencrypted_places_are_refused(hub, code, target):
    hub.pages["/w.pth"] = (code, {"Location": target}, b"")
    fails(f"{hub.url}/w.pth", "refused: files are fetched over https only")


def test_other_machines_do_not_lead_to_this_one():
    request = Request("https://example.org/w.pth")
    with pytest.raises(HubError, match="https only"):
        _Redirects(False).http_error_302(request, io.BytesIO(), 302, "", {"Location": "http://localhost/w.pth"})  # type: ignore[arg-type]


def test_no_other_header_leads_away(hub):
    """urllib follows "URI" as well, to unencrypted places too."""
    hub.pages["/w.pth"] = (302, {"URI": "http://example.org/x"}, b"")
    fails(f"{hub.url}/w.pth", "answers 302")
    assert len(hub.requests) > 1  # of the same address


def test_the_body_of_a_redirect_is_not_read():
    class Endless(io.BytesIO):
        def read(self, *_):
            raise AssertionError("was read")

    body, opened = Endless(), []
    redirects = _Redirects(True)
    redirects.add_parent(SimpleNamespace(open=lambda request, timeout: opened.append(request.full_url)))
    request = Request("https://example.org/w.pth")
    request.timeout = 1
    redirects.http_error_302(request, body, 302, "", {"Location": "/far?key=1"})  # type: ignore[arg-type]
    assert (opened, body.closed) == (["https://example.org/far?key=1"], True)


def test_circles_end(hub):
    hub.pages["/w.pth"] = (302, {"Location": "/w.pth"}, b"")
    fails(f"{hub.url}/w.pth", "answers 302")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"<!DOCTYPE html><html>Log in</html>", "leads to is a web page"), (b'{"error": "not found"}', "is a text"),
     (b"\x1f\x8b" + bytes(20), "is compressed"), (b"version https://git-lfs.github.com/spec/v1\n", "git LFS")],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_and_not_kept(hub, body, words):
    hub.pages["/w.pth"] = (200, {}, body)
    assert f"What {hub.url}/w.pth leads to" in fails(f"{hub.url}/w.pth", words)


def test_what_breaks_off_is_not_kept(hub, content):
    hub.pages["/w.pth"] = (200, {"Content-Length": str(len(content) + 1), "Connection": "close"}, content)
    fails(f"{hub.url}/w.pth", r"broke off after [\d,]+ of")


def test_more_than_announced_is_not_read(hub, content):
    hub.pages["/w.pth"] = (200, {"Content-Length": str(len(content)), "Connection": "close"}, content + b"more")
    assert located(f"{hub.url}/w.pth").read_bytes() == content


def test_large_files_are_refused_announced_or_not(hub, content, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", len(content) - 1)
    hub.pages["/w.pth"] = (200, {}, content)
    fails(f"{hub.url}/w.pth", r"has [\d,]+ bytes; up to")
    hub.pages["/w.pth"] = (200, {"Content-Length": "unknown", "Connection": "close"}, content)
    fails(f"{hub.url}/w.pth", "sends more than")


def test_servers_that_refuse_or_are_not_there_are_one_line(hub):
    fails(f"{hub.url}/none.pth", r"answers 404 .* Check the address")
    fails("http://127.0.0.1:9/w.pth", "cannot be fetched .*refused")
    fails("http://127.0.0.1:9/ä.pth", "has letters that no address has. Write them as %XX")
    hub.pages["/w.pth"] = (200, {"Content-Length": "9" * 5000, "Connection": "close"}, b"<html>")
    fails(f"{hub.url}/w.pth", "is a web page")


def test_what_was_interrupted_is_fetched_anew(hub, content):
    hub.pages["/w.pth"] = (200, {}, content[:100])
    hub.pages["/w.pth"][1]["Content-Length"] = "1000"
    hub.pages["/w.pth"][1]["Connection"] = "close"
    fails(f"{hub.url}/w.pth", "broke off")
    hub.pages["/w.pth"] = (200, {}, content)
    assert located(f"{hub.url}/w.pth").read_bytes() == content
