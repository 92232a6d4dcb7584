"""What goes wrong between here and the Hub, as one sentence that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_lottery.redaction import redacted

SECONDS = 60  # how long the Hub may be silent; without a limit, huggingface_hub waits for ever

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """The Hub was not reached, or did not do what it was asked; the message is one sentence."""


@contextmanager
def asking_the_hub(repo_id: str, failed: str, afterwards: str = "") -> Iterator[None]:
    """A block that calls huggingface_hub alone; whatever it raises becomes a HubError.

    huggingface_hub has no class for all of its errors: those of the connection, of answers that are cut off or are not
    what was expected, and of the disk (its cache) are of many kinds. All of them are in `__cause__`.

    Args:
        repo_id: the repository.
        failed: what did not happen, such as "you/name could not be downloaded".
        afterwards: what is true now, for the end of the sentence.

    Raises:
        HubError: as said.
        ValueError: `repo_id` or a branch's name is not one that the Hub allows.
    """
    client = get_session()
    before, client.timeout = client.timeout, SECONDS
    try:
        yield
    except HFValidationError as error:
        raise ValueError(_short(str(error))) from error
    except Exception as error:
        raise HubError(f"{failed}: {_reason(error, repo_id)}{afterwards and '; '}{afterwards}") from error
    finally:
        client.timeout = before


def _reason(error: Exception, repo_id: str) -> str:
    chain = _chain(error)
    for one in chain:
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return f"{one.strerror}{f' ({one.filename})' if one.filename else ''}; HF_HOME says where its cache is"
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            return _refused(one, repo_id)
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it"
        if isinstance(one, LocalTokenNotFoundError):
            return f"there is no token; {_LOG_IN}"
    last = chain[-1]
    return f"the Hub cannot be reached, or it broke off ({type(last).__name__}: {_short(str(last))}); try again later"


def _refused(error: HfHubHTTPError, repo_id: str) -> str:
    """What a status of HTTP means here."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated; ask for access on its page, and {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision; give a branch, tag or commit that it has"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {repo_id}, or you may not see it; check the name, and for a private one {_LOG_IN}"
    if status == 401:
        return f"the Hub does not know you (status 401); {_LOG_IN}"
    if status == 403:
        return f"your token may not do this to {repo_id} (status 403); use one that may write there"
    if status in (409, 412):
        return f"somebody else has changed {repo_id} in the meantime (status {status}); run the same command again"
    if status == 429 or status >= 500:
        return f"the Hub cannot do it now (status {status}); try again later"
    return f"the Hub refused it (status {status}: {_short(error.server_message or 'without a reason')})"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, the outermost first."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    return chain


def _short(text: str) -> str:
    """A text of another's, for a sentence: one line, of bounded length, without control characters and tokens."""
    return ascii(redacted(" ".join(text.split())[:1000]))[1:-1][:200]
