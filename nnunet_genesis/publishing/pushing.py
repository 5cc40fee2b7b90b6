"""A folder that `card` wrote → a commit in a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from nnunet_genesis.checkpoints.formats.published import CASES, CONFIG, WEIGHTS, is_published
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import HubError
from nnunet_genesis.hub.repositories import in_words, repository
from nnunet_genesis.publishing.model_card import ADDRESS, README

MESSAGE = "Weights and model card, written by nnunet_genesis card"


def push(folder: Path, address: str, private: bool = False) -> str:
    """Upload the files that `card` wrote, and no others, in one commit; the model card is told the address.

    Args:
        folder: Written by `write_bundle`.
        address: `hf://owner/repo`; made if it is not there yet.
        private: Whether it must be private.

    Returns:
        The address of the commit.

    Raises:
        HubError: The folder was not written by `card`, the repository is public and should not be, nobody is logged in,
            or the hub refuses.
        CheckpointError: The folder's files do not belong to each other.
    """
    whole = repository(address)
    if not is_published(folder) or not (card := folder / README).is_file():
        raise HubError(f"{folder} holds no model card with weights. Write it first: nnunet_genesis card --help")
    read_pretrained(folder / WEIGHTS)
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    with in_words(whole):
        if get_token() is None:
            raise HubError(f"Nobody is logged in to write to {whole}. Log in: hf auth login, or set HF_TOKEN.")
        api = HfApi()
        # where nothing is asked for, what the owner has set for new repositories holds
        api.create_repo(whole.repo, private=private or None, exist_ok=True)
        if private and not api.model_info(whole.repo).private:
            raise HubError(
                f"{whole} exists and is public. Make it private first, or name another. Nothing was uploaded."
            )
        text = card.read_text(encoding="utf-8").replace(ADDRESS, str(whole))
        files = [name for name in (CONFIG, WEIGHTS, CASES) if (folder / name).is_file()]
        adds = [CommitOperationAdd(README, text.encode()), *(CommitOperationAdd(name, folder / name) for name in files)]
        commit = api.create_commit(whole.repo, adds, commit_message=MESSAGE)  # all of them or none
    return f"{whole}@{commit.oid}"
