"""`hf://` against a hub on this machine, and against a filled cache without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from nnunet_genesis.checkpoints.foreign import ENDINGS
from nnunet_genesis.errors import HubError
from nnunet_genesis.hub import repositories
from nnunet_genesis.hub.addresses import HubAddress
from nnunet_genesis.hub.locating import located, origin
from nnunet_genesis.hub.repositories import beside, choose

OPENMIND = ["README.md", ".gitattributes", "adaptation_plan.json", "checkpoint_final.pth", "config.json"]
GENESIS = ["README.md", "Genesis_Chest_CT.h5", "Genesis_Chest_CT.pt", "genesis_nnunet_luna16_006.model"]


def address(file: str = "", revision: str | None = None) -> HubAddress:
    return HubAddress("me/weights", revision, file)


def fails(text: str, words: str) -> str:
    with pytest.raises(HubError, match=words) as error:
        located(text)
    assert str(error.value).isprintable()
    assert text.partition("@")[0] in str(error.value)
    return str(error.value)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# which file


def test_the_one_checkpoint_among_the_files_of_the_fields_layout_is_chosen():
    assert choose(OPENMIND, address()) == "checkpoint_final.pth"
    assert beside("checkpoint_final.pth", OPENMIND) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_stands_for_the_checkpoint_in_it(ending):
    names = ["a/one.pth", f"b/two{ending}", "b/log.txt", "b.pth"]
    assert choose(names, address("b")) == f"b/two{ending}"


def test_several_checkpoints_are_listed_and_none_is_guessed():
    with pytest.raises(HubError, match=r"holds \d+ checkpoints\. Name one of them") as error:
        choose(GENESIS, address(revision="v1"))
    assert "hf://me/weights@v1/Genesis_Chest_CT.pt, " in str(error.value)
    assert choose(GENESIS, address("Genesis_Chest_CT.pt")) == "Genesis_Chest_CT.pt"
    assert choose(GENESIS, address("Genesis_Chest_CT.h5")) == "Genesis_Chest_CT.h5"


def test_files_that_are_not_there_are_met_with_those_that_are():
    with pytest.raises(HubError, match=r"x\.pth is not in the repository\. Its checkpoints are hf://me/weights/checkp"):
        choose(OPENMIND, address("x.pth"))
    with pytest.raises(HubError, match=r"holds no checkpoint .* but README\.md"):
        choose(["README.md"], address())
    with pytest.raises(HubError, match="and 8 more"):
        choose([f"{number}.pth" for number in range(20)], address())


def test_what_belongs_to_a_checkpoint_comes_with_it():
    names = ["a/model.safetensors", "a/config.json", "config.json", "cases.npz", "v1.model", "v1.model.pkl", "x.pth"]
    assert beside("a/model.safetensors", names) == ["a/config.json"]
    assert beside("v1.model", names) == ["v1.model.pkl"]
    assert beside("x.pth", names) == []


# with the hub


def test_a_repository_is_fetched_once_and_its_commit_is_known(hub, content):
    commit = hub.add("me/weights", dict.fromkeys(OPENMIND, b"{}") | {"checkpoint_final.pth": content})
    path = located("hf://me/weights")
    assert path.read_bytes() == content
    assert origin(path) == f"hf://me/weights@{commit}/checkpoint_final.pth"
    sent = [request for request in hub.requests if "/store/" in request[1]]
    assert located(Path("hf://me/weights")) == located(f"hf://me/weights@{commit}/checkpoint_final.pth") == path
    assert [request for request in hub.requests if "/store/" in request[1]] == sent
    assert {file.name for file in path.parent.iterdir()} == {"checkpoint_final.pth"}


def test_revisions_are_kept_apart(hub, content):
    first = hub.add("me/weights", {"old.pth": content})
    second = hub.add("me/weights", {"new.pth": content + b"2"})
    assert origin(located("hf://me/weights")) == f"hf://me/weights@{second}/new.pth"
    assert origin(located(f"hf://me/weights@{first}")) == f"hf://me/weights@{first}/old.pth"
    fails("hf://me/weights@v9", "has no such revision")
    fails("hf://me/weights/old.pth", r"not in the repository\. Its checkpoints are hf://me/weights/new\.pth")


def test_repositories_that_are_missing_or_closed_say_how_to_get_in(hub, content, monkeypatch):
    fails("hf://me/none", "does not exist, or is private")
    hub.add("me/closed", {"x.pth": content}, private=True)
    hub.add("me/gated", {"x.pth": content}, gated=True)
    fails("hf://me/closed", "does not exist, or is private")
    assert f"Accept them at {hub.url}/me/gated, then log in" in fails(
        "hf://me/gated", "is given out to those who have accepted its terms"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert located("hf://me/closed").read_bytes() == located("hf://me/gated").read_bytes() == content
    # a token goes to the hub, never to where files are kept
    assert {token for _, path, token in hub.requests if "/store/" in path} == {None}


def test_a_hub_that_is_not_there_or_is_none_is_said_in_one_line(hub, monkeypatch):
    hub.pages["/api/models/me/weights"] = (200, {"Content-Type": "text/html"}, b"<html>Log in to the WiFi</html>")
    fails("hf://me/weights", "does not answer as a hub does")
    hub.add("me/proxied", {"x.pth": b"x"})
    hub.pages["/me/proxied/resolve/main/x.pth"] = (200, {}, b"<html>Log in to the WiFi</html>")
    fails("hf://me/proxied", "does not answer as a hub does .*FileMetadataError")
    hub.pages["/api/models/me/weights"] = (500, {}, b"")
    fails("hf://me/weights", r"answers 500 .* Try again later")
    hub.pages["/api/models/me/weights"] = (403, {}, b"")
    fails("hf://me/weights", r"answers 403 .* Log in with a token")


def test_a_mirrors_password_is_not_shown(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//me:hidden@"))
    hub.pages["/api/models/me/weights"] = (500, {}, b"")
    assert "hidden" not in fails("hf://me/weights", "answers 500")
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:hidden@127.0.0.1:9")
    assert "hidden" not in fails("hf://me/weights", "http://127.0.0.1:9 does not answer as a hub does")


def test_large_files_are_refused_before_they_are_fetched(hub, content, monkeypatch):
    hub.add("me/weights", {"x.pth": content})
    monkeypatch.setattr(repositories, "LARGEST", len(content) - 1)
    fails("hf://me/weights", "Download it yourself")
    assert not any("/store/" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("name", ["../../evil.pth", "a/../../x.pth", "/etc/x.pth", "..\\x.pth"])
def test_a_list_of_files_that_leads_out_of_the_repository_is_refused(hub, content, name, tmp_path):
    hub.add("me/weights", {"x.pth": content})
    hub.lies["listed"] = [name]
    fails("hf://me/weights", "leads out of it")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("change", [lambda content: content[::-1], lambda content: b"<html>" + content[6:]])
def test_what_is_not_what_the_hub_announces_is_refused(hub, content, change):
    hub.add("me/weights", {"x.pth": content})
    hub.lies["sent"] = {"x.pth": change(content)}
    assert "Delete that file" in fails("hf://me/weights", "another file than the hub announces")


def test_more_or_less_than_announced_is_refused(hub, content, tmp_path):
    hub.add("me/weights", {"x.pth": content})
    for sent in (content + b"more", content[:-4]):
        hub.lies["sent"] = {"x.pth": sent}
        fails("hf://me/weights", "Consistency check failed")
    assert not list((tmp_path / "hub").rglob("x.pth"))


# without the hub


def test_what_is_in_the_cache_needs_no_network(hub, content, monkeypatch):
    commit = hub.add("me/weights", dict.fromkeys(OPENMIND, b"{}") | {"checkpoint_final.pth": content})
    path = located("hf://me/weights")
    asked = len(hub.requests)
    offline(monkeypatch)
    for text in ("", "/checkpoint_final.pth", f"@{commit}", f"@{commit}/checkpoint_final.pth", "@main"):
        assert located(f"hf://me/weights{text}") == path
    assert len(hub.requests) == asked


def test_what_is_not_in_the_cache_says_so_without_a_network(hub, content, monkeypatch):
    hub.add("me/weights", {"x.pth": content})
    located("hf://me/weights")
    offline(monkeypatch)
    for text in ("hf://me/other", "hf://me/weights@v2", "hf://me/weights/y.pth"):
        fails(text, r"is not in the cache.*HF_HUB_OFFLINE")


def test_a_cache_that_is_known_to_lack_other_files_is_used(hub, content, monkeypatch):
    commit = hub.add("me/weights", {"x.pth": content, "y.bin": b"y"})
    located("hf://me/weights")
    listing = Path(constants.HF_HUB_CACHE) / "models--me--weights" / "trees" / f"{commit}.json"
    listing.parent.mkdir()  # as snapshot_download writes it
    files = {name: {"size": 1, "blob_id": "0"} for name in ("x.pth", "y.bin")}
    listing.write_text(json.dumps({"format_version": 1, "files": files}))
    offline(monkeypatch)
    assert located("hf://me/weights").name == "x.pth"


def test_the_environment_of_the_client_decides(hub, content, tmp_path):
    """In a process of its own, as a user starts it."""
    commit = hub.add("me/weights", {"x.pth": content})
    program = "from nnunet_genesis.hub.locating import *; print(origin(located('hf://me/weights')))"
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    drop = ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in drop} | own
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"hf://me/weights@{commit}/x.pth\n"
    assert list((tmp_path / "home" / "hub").rglob("x.pth"))
