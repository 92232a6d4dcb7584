"""The README's first example is run as it stands, and its second after it."""

from __future__ import annotations

import re
from pathlib import Path

from hf_lottery import Ticket
from hf_lottery.training.network_folder import NetworkFolder

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_script_finds_a_ticket_and_trains_it(tmp_path, monkeypatch):
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    results = [NetworkFolder(tmp_path / f"outputs/script/round-{r:02d}").result() for r in range(4)]
    left = {"hidden.0.weight": 235200, "hidden.2.weight": 30000, "classifier.weight": 1000}
    for line in results:
        assert {name: kept for name, (kept, _) in line["densities"].items()} == left
        assert line["eval_accuracy"] > 0.8
        left = {name: n - round((0.25 if name == "classifier.weight" else 0.5) * n) for name, n in left.items()}
    assert Ticket.from_pretrained(tmp_path / "outputs/script/ticket").mask == names["ticket"].mask
    exec(compile(second, "README.md", "exec"), names)
    for name, kept in names["ticket"].mask.items():
        assert not names["trainer"].model.get_parameter(name)[~kept].any()
