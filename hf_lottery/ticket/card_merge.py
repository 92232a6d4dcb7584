"""Put our part of a model card into a README.md, and keep the text and metadata that a user wrote around it."""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from hf_lottery.ticket.document import TicketError

BEGIN = "<!-- hf_lottery: from here to its end mark, this part is written anew by every save and push -->"
END = "<!-- hf_lottery: end -->"


def merge_card(existing: str | None, metadata: dict[str, Any], body: str) -> str:
    """`existing` with our metadata and with `body`, between BEGIN and END, in the place of our older part.

    The user's tags and license stay. Without an older part, `body` is added at the end.

    Args:
        existing: the text of the README.md that is there; None: there is none.
        metadata: ours, as in ModelCardData.
        body: Markdown, without the marks.

    Raises:
        TicketError: the metadata of `existing` is not YAML, its tags are no list of words, or one of the two marks is
            missing.
    """
    card, theirs = _parsed(existing or "")
    ours = {**metadata, "tags": list(dict.fromkeys([*_tags(theirs), *metadata["tags"]]))}
    if "license" in theirs:
        ours["license"] = theirs["license"]
    text = _with_part(card.text, f"{BEGIN}\n\n{body}\n\n{END}")
    card.data = ModelCardData(**{**theirs, **ours}, ignore_metadata_errors=True)
    card.text = text
    return str(card)


def _parsed(text: str) -> tuple[ModelCard, dict[str, Any]]:
    """The card, and its metadata; a text without metadata gets empty metadata."""
    if not re.match(r"\s*---\s*[\r\n]", text):
        text = "---\ntags: []\n---\n" + text
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        return card, card.data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise TicketError(f"README.md has metadata that cannot be read ({first}); correct it, or remove it") from None


def _tags(metadata: dict[str, Any]) -> list[Any]:
    tags = metadata.get("tags") or []
    tags = [tags] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or any(isinstance(tag, (list, dict)) for tag in tags):
        raise TicketError(f"README.md has the tags {str(tags)[:80]}, which are no list of words; correct it")
    return tags


def _with_part(text: str, part: str) -> str:
    begin = text.find(BEGIN)
    if begin < 0:
        before = text.rstrip()
        return f"{before}\n\n{part}\n" if before else f"\n{part}\n"
    end = text.find(END, begin)
    if end < 0 or 0 <= text.find(BEGIN, begin + 1) < end:
        raise TicketError(f"README.md has the line {BEGIN} without its {END}: put it back, or remove both")
    return text[:begin] + part + text[end + len(END) :]
