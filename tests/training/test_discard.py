"""What a damaged file belongs to is looked for in the run's folder alone, whatever the folders above are called."""

from __future__ import annotations

import shutil

import pytest

from hf_lottery import LotteryConfig
from hf_lottery.finished import read_line
from hf_lottery.sealed import DamagedFile, require_whole_folder, seal_folder
from hf_lottery.training.discard import discard, owner
from hf_lottery.training.search import Search
from tests.tiny import make_trainer


@pytest.mark.parametrize("above", ["rewind", "checkpoint-5"])
@pytest.mark.parametrize(
    "name", ["round-01/trained.safetensors", "round-01/checkpoint-4/optimizer.pt", "rewind/rng.pt"]
)
def test_a_folder_above_the_run_is_not_taken_for_a_part_of_it(tmp_path, above, name):
    root = tmp_path / above / "out"
    mine = tmp_path / above / "mine.txt"
    (root / name).parent.mkdir(parents=True)
    for path in (mine, root / name, root / "search.json"):
        path.write_text("")
    damage = DamagedFile(root / name, "it is empty")
    network = root / ("round-00" if name.startswith("rewind") else "round-01")
    assert owner(damage, root) == network
    assert discard(damage, root) == network
    assert mine.exists() and (root / "search.json").exists() and not (root / name).exists()


def test_a_run_in_a_folder_called_rewind_recomputes_one_round(tmp_path):
    def search():
        return make_trainer(tmp_path / "rewind", lottery_config=LotteryConfig(num_rounds=1))

    expected = search().find_ticket()
    before = (tmp_path / "rewind" / "round-00" / "result.json").read_bytes()
    (tmp_path / "rewind" / "round-01" / "trained.safetensors").write_bytes(b"torn")
    again = search().find_ticket()
    assert again.mask == expected.mask
    assert (tmp_path / "rewind" / "round-00" / "result.json").read_bytes() == before


def test_a_file_in_the_place_of_the_rewind_points_folder(tmp_path):
    (tmp_path / "rewind").write_text("")
    assert discard(DamagedFile(tmp_path / "rewind" / "manifest.json", "it is missing"), tmp_path).name == "round-00"
    assert not (tmp_path / "rewind").exists()


def test_a_manifest_lists_the_files_in_a_folder_with_any_name(tmp_path):
    folder = tmp_path / ".partial-of-mine" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("1")
    seal_folder(folder, {})
    (folder / "weights").write_text("2")
    with pytest.raises(DamagedFile, match="its contents have changed"):
        require_whole_folder(folder)


def test_the_result_of_another_round_is_not_taken(tmp_path):
    def search():
        return make_trainer(tmp_path, lottery_config=LotteryConfig(num_rounds=2))

    expected = search().find_ticket()
    shutil.rmtree(tmp_path / "round-02")
    shutil.copytree(tmp_path / "round-01", tmp_path / "round-02")
    with pytest.raises(DamagedFile, match="the result of another network, replicate 0 · round 1 · ticket"):
        read_line(tmp_path / "round-02")
    trainer = search()
    assert trainer.find_ticket().mask == expected.mask
    assert Search(trainer).round_folder(2).result()["round"] == 2
