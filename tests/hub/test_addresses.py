"""Addresses: what they name, what is refused, what of them is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.errors import HubError
from nnunet_genesis.hub.addresses import (
    HubAddress,
    file_name,
    hub_address,
    in_full,
    is_plain_path,
    web_address,
    without_secrets,
)
from nnunet_genesis.hub.locating import located, origin, source_of

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,10}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda name: name not in ("datasets", "spaces", "buckets")
)
REVISIONS = st.none() | st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?", fullmatch=True)
FILES = st.just("") | st.lists(NAMES, min_size=1, max_size=3).map("/".join).map(lambda path: path + ".pth")


@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES, REVISIONS, FILES)
def test_an_address_is_read_as_it_is_written_also_after_pathlib(owner, repo, revision, file):
    address = HubAddress(f"{owner}/{repo}", revision, file)
    assert hub_address(str(address)) == address
    assert hub_address(in_full(str(Path(str(address))))) == address


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://owner", "hf://owner/", "hf:///repo", "hf://owner/re po", "hf://owner/..", "hf://../repo", "hf://o/r@",
     "hf://o/r@../x", "hf://o/r@a b", "hf://o/r@%2e%2e", "hf://o/r/../x.pth", "hf://o/r/a//x.pth", "hf://o/r/./x",
     "hf://o/r/a\\x", "hf://o/r/\x1b[31mx", "hf://datasets/o/r", "hf://o/r\n/x", "hf://-o/r"],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_printable_line(text):
    with pytest.raises(HubError, match=r"Write hf://owner/repo") as error:
        located(text)
    assert str(error.value).isprintable()


def test_a_folder_in_a_repository_may_end_with_a_slash():
    assert hub_address("hf://o/r/track/team/") == HubAddress("o/r", None, "track/team")


@pytest.mark.parametrize("file", ["../x", "a/../x", "/x", "a//x", ".", "..", "", "a\\..\\x", "a/ ../x", "a\nb"])
def test_paths_that_leave_a_repository_are_not_plain(file):
    assert not is_plain_path(file)


@pytest.mark.parametrize(
    "text",
    ["http://example.org/x.pth", "ftp://example.org/x", "file:///etc/passwd", "https:///x", "https://user:pw@example.org/x",
     "https://example.org:port/x", "https://[::1/x", "http://localhost.example.org/x", "http://127.0.0.1@example.org/x",
     "s3://bucket/x.pth"],
)  # fmt: skip
def test_only_encrypted_addresses_without_passwords_are_followed(text):
    with pytest.raises(HubError) as error:
        located(text)
    assert "pw" not in str(error.value).replace("passwd", "")


@pytest.mark.parametrize(
    "text",
    ["http://me:hidden@example.org/x?key=hidden", "https://me:hidden@example.org:port/x#hidden", "ftp://me:hidden@h/x",
     "https://me:hidden@h/x", "https://hidden@[::1/x", "s3://h/x?hidden", "https://me:p@hidden@h/x"],
)  # fmt: skip
def test_messages_show_neither_users_nor_passwords_nor_keys(text):
    with pytest.raises(HubError) as error:
        located(text)
    assert "hidden" not in str(error.value)
    assert "/x" in str(error.value)


def test_this_machine_may_be_asked_unencrypted_unless_another_one_sent_us_there():
    assert web_address("http://localhost:80/x").hostname == "localhost"
    with pytest.raises(HubError, match="https only"):
        web_address("http://localhost:80/x", from_this_machine=False)


def test_keys_in_an_address_are_not_written_down():
    parts = web_address("https://example.org/a/w.pth?token=secret#secret")
    assert without_secrets(parts) == "https://example.org/a/w.pth"
    assert file_name(parts) == "w.pth"


@pytest.mark.parametrize("end", ["", "%2e%2e", "..", "a%2fb", ".hidden", "x" * 300, "a%00b", "%1b[31m", "a b.pth"])
def test_names_that_are_no_plain_names_of_files_are_not_used(end):
    assert file_name(web_address(f"https://example.org/{end}")) in ("checkpoint", "b")


def test_paths_stay_what_they_are(tmp_path):
    for path in (Path("a.pth"), tmp_path / "b.pth", tmp_path):
        assert located(path) == path
        assert located(str(path)) == path
        assert origin(path) is None
    assert source_of(Path("a.pth")) == "a.pth"
    assert source_of(Path("/data/a/b/c/d.pth")) == "b/c/d.pth"


def test_a_file_in_the_clients_cache_tells_its_commit():
    path = Path(f"/x/models--MIC-DKFZ--ResEncL/snapshots/{'a1' * 20}/fold_0/checkpoint_final.pth")
    assert origin(path) == source_of(path) == f"hf://MIC-DKFZ/ResEncL@{'a1' * 20}/fold_0/checkpoint_final.pth"
