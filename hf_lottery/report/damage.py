"""Which of the files that a report reads are damaged, so that it leaves them out."""

from __future__ import annotations

from pathlib import Path

from hf_lottery.finished import whole_file
from hf_lottery.layout import (
    DATA_NOTES_FILE,
    GENERATIONS_FILE,
    INSTABILITY_FILE,
    INSTABILITY_FOLDER,
    STATE_FILE,
    Network,
)
from hf_lottery.mask import MASK_FILE
from hf_lottery.results.results import Results
from hf_lottery.sealed import DamagedFile, read_sealed, read_sealed_text


def damages(output_dir: Path, results: Results) -> list[str]:
    """A sentence for each damaged file: of networks (curves, masks, answers), of instability, of the data."""
    found = []
    for folder in (Network.of_line(line).folder(output_dir) for line in results.trained):
        for name in (STATE_FILE, MASK_FILE, GENERATIONS_FILE):
            try:
                whole_file(folder, name)
            except FileNotFoundError:
                continue
            except DamagedFile as damage:
                found.append(damage)
    for path in sorted((output_dir / INSTABILITY_FOLDER).glob(f"round-*/replicate-*/{INSTABILITY_FILE}")):
        try:
            read_sealed(path)
        except DamagedFile as damage:
            found.append(damage)
    try:
        read_sealed_text(output_dir / DATA_NOTES_FILE)
    except FileNotFoundError:
        pass
    except DamagedFile as damage:
        found.append(damage)
    named = {(damage.path.relative_to(output_dir).as_posix(), damage.why): None for damage in found}
    return [f"{name} is damaged ({why}) and was left out." for name, why in named]
