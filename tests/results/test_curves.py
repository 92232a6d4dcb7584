import json

from hf_lottery.results.curves import learning_curve
from tests.result_lines import line, write_folder


def test_a_curve_holds_the_value_of_every_network(tmp_path):
    found = [line("ticket", 1, 0), line("ticket", 1, 1)]
    curve = learning_curve(write_folder(tmp_path, found), found, "test_accuracy")
    assert list(curve) == list(range(100, 2001, 100))
    assert curve[2000][0] == found[0]["test_accuracy"] - 0.8 * 2.718281828459045 ** (-6 * 2000 / 800)


def test_only_steps_that_all_networks_share_are_kept(tmp_path):
    found = [line("ticket", 1, 0), line("ticket", 1, 1)]
    folder = write_folder(tmp_path, found)
    history = [{"step": step, "eval_test_accuracy": 0.5} for step in (150, 200, 300)]
    (folder / "replicate-1" / "round-01" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert list(learning_curve(folder, found, "test_accuracy")) == [200, 300]


def test_networks_without_a_readable_state_are_left_out(tmp_path):
    found = [line("random_reinit", 1, 0, sample) for sample in range(3)]
    folder = write_folder(tmp_path, found)
    (folder / "replicate-0" / "round-01" / "random_reinit-1" / "trainer_state.json").write_text('{"log_hist')
    (folder / "replicate-0" / "round-01" / "random_reinit-2" / "trainer_state.json").unlink()
    assert {len(values) for values in learning_curve(folder, found, "test_accuracy").values()} == {1}
    assert learning_curve(tmp_path / "nowhere", found, "test_accuracy") == {}
