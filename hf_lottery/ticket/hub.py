"""A repository of the Hub that holds a ticket: download it, and write a ticket to it in one commit.

Because of the one commit, readers get either the old ticket or the new one, never a part of each.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from hf_lottery.layout import REWIND_FILE
from hf_lottery.mask import MASK_FILE
from hf_lottery.ticket.document import TicketError, parse, read_bounded
from hf_lottery.ticket.hub_error import asking_the_hub
from hf_lottery.ticket.schema import FILES, HUB_ID, JSON_FILE


def download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | os.PathLike | None
) -> Path:
    """The folder of the Hub's cache with the ticket's files, downloaded where they are not there yet.

    Raises:
        FileNotFoundError: `repo_id` is not a Hub id such as `you/name`, so it was meant as a folder.
        HubError: it could not be downloaded, and is not in the cache.
    """
    if Path(repo_id).exists():
        raise NotADirectoryError(f"'{repo_id}' is a file; give the folder of a ticket or of a run")
    if not HUB_ID.fullmatch(repo_id) or "/" not in repo_id:
        raise FileNotFoundError(f"there is no folder '{repo_id}'; give a folder, or a ticket on the Hub as you/name")
    with asking_the_hub(repo_id, f"there is no folder '{repo_id}' here, and it could not be downloaded"):
        # one call, so that all files are of one commit
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                allow_patterns=[JSON_FILE, MASK_FILE, REWIND_FILE],
            )
        )


def open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> tuple[str, str]:
    """Create the repository and the branch `revision` if needed; returns the full id and the branch's last commit."""
    with _preparing(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return repo_id, api.repo_info(repo_id, revision=revision).sha


def _preparing(repo_id: str) -> AbstractContextManager[None]:
    """A block of calls before the commit."""
    return asking_the_hub(repo_id, f"the ticket was not published in {repo_id}", "what is there has not changed")


def read_text(api: HfApi, repo_id: str, name: str, commit: str) -> str | None:
    """A small text file of the repository at `commit`; None if there is none.

    Raises:
        TicketError: the file is larger than any that is read.
    """
    with _preparing(repo_id):
        if not api.file_exists(repo_id, name, revision=commit):
            return None
        path = Path(api.hf_hub_download(repo_id, name, revision=commit))
    return read_bounded(path).decode("utf-8", errors="replace")


def commit_files(
    api: HfApi, files: dict[str, Path | bytes], repo_id: str, parent: str, revision: str | None, message: str
) -> str:
    """Commit `files` (name -> path or content), and delete the files of the ticket before that this one does not have.

    Other files of the repository stay. The Hub refuses the commit if somebody has pushed since `parent`.

    Returns:
        The address of the commit's page.
    """
    old = read_text(api, repo_id, JSON_FILE, parent)
    stale = sorted(set(_listed(old)) - files.keys()) if old is not None else []
    # the commit may have been made and its answer lost
    failed = f"the ticket may not have been published in {repo_id}"
    after = "it holds the ticket from before or all of this one, and to publish it again does no harm"
    with asking_the_hub(repo_id, failed, after):
        stale = [name for name in stale if api.file_exists(repo_id, name, revision=parent)]
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
        ).commit_url


def _listed(old: str) -> list[str]:
    """Names of the files that an older ticket.json lists; none if it cannot be read, so that nothing is deleted."""
    try:
        files = parse(old.encode()).get("files")
    except (TicketError, UnicodeEncodeError):
        return []
    return [name for name in files if FILES.fullmatch(name)] if isinstance(files, dict) else []
