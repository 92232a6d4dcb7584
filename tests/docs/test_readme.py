"""The README's first example is run as it stands, and the others after it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hf_lottery import Ticket
from hf_lottery.training.network_folder import NetworkFolder

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_script_finds_a_ticket_and_trains_it(tmp_path, monkeypatch):
    first, second, third = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
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

    exec(compile(third, "README.md", "exec"), names)
    args = replace(names["args"], output_dir="outputs/own", max_steps=20)
    own = names["Trainer"](
        names["LeNet"](), args, train_dataset=names["examples"][:600], lottery_config=names["config"]
    ).find_ticket()
    assert own.info["criterion"] == "my_scores" and 0.12 < own.density() < 0.13
