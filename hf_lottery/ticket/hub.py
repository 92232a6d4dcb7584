"""A ticket's files -> a repository of the Hub, in one commit: a reader sees the old ticket or the new one."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hf_lottery.ticket.document import MAX_BYTES, TicketError, parse
from hf_lottery.ticket.schema import FILES, JSON_FILE


def open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> tuple[str, str]:
    """Make the repository and the branch `revision` where they are missing; returns the full id and the head."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id, api.repo_info(repo_id, revision=revision).sha


def read_text(api: HfApi, repo_id: str, name: str, commit: str) -> str | None:
    """A small text file of the repository at `commit`; None where there is none."""
    if not api.file_exists(repo_id, name, revision=commit):
        return None
    path = Path(api.hf_hub_download(repo_id, name, revision=commit))
    if path.stat().st_size > MAX_BYTES:
        raise TicketError(f"{name} of {repo_id} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    return path.read_bytes().decode("utf-8", errors="replace")


def commit_files(
    api: HfApi, files: dict[str, Path | bytes], repo_id: str, parent: str, revision: str | None, message: str
) -> str:
    """Commit `files` (name -> path or content), and take away what the ticket before had and this one has not.

    Nothing else of the repository is touched. The Hub refuses the commit where somebody has pushed since `parent`.

    Returns:
        the commit's page.
    """
    old = read_text(api, repo_id, JSON_FILE, parent)
    stale = sorted(set(_listed(old)) - files.keys()) if old is not None else []
    stale = [name for name in stale if api.file_exists(repo_id, name, revision=parent)]
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
    ).commit_url


def _listed(old: str) -> list[str]:
    """Names of the files of an older ticket; what cannot be read lists none, and nothing is taken away."""
    try:
        files = parse(old.encode()).get("files")
    except (TicketError, UnicodeEncodeError):
        return []
    return [name for name in files if FILES.fullmatch(name)] if isinstance(files, dict) else []
