"""Where the networks of a run lie, what each needs, and which ones a recipe plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.trainer import TRAINER_STATE_NAME

from hf_lottery.layout import STATE_FILE, Network, planned_networks
from hf_lottery.learning_rates import learning_rates


@pytest.mark.parametrize(
    ("network", "folder", "needs", "name"),
    [
        (Network(0, 0), "replicate-0/round-00", None, "replicate 0 · round 0 · dense"),
        (Network(1, 3), "replicate-1/round-03", Network(1, 2), "replicate 1 · round 3 · ticket"),
        (
            Network(1, 3, "random_reinit", 2),
            "replicate-1/round-03/random_reinit-2",
            Network(1, 3),
            "replicate 1 · round 3 · random reinit 3",
        ),
        (
            Network(1, 3, "no_rewinding", 2),
            "replicate-1/round-03/no_rewinding-2",
            Network(1, 2, "no_rewinding", 2),
            "replicate 1 · round 3 · no rewinding 3",
        ),
        (
            Network(1, 1, "learning_rate_rewinding", 2),
            "replicate-1/round-01/learning_rate_rewinding-2",
            Network(1, 0),
            "replicate 1 · round 1 · learning rate rewinding 3",
        ),
        (
            Network(1, 0, learning_rate=1e-05),
            "replicate-1/round-00/ticket-lr-1e-05",
            Network(1, 0),
            "replicate 1 · round 0 · dense · learning rate 1e-05",
        ),
        (
            Network(1, 3, learning_rate=0.003),
            "replicate-1/round-03/ticket-lr-0.003",
            Network(1, 3),
            "replicate 1 · round 3 · ticket · learning rate 0.003",
        ),
        (
            Network(1, 3, "random_mask", 1, 0.1 + 0.2),
            "replicate-1/round-03/random_mask-1-lr-0.30000000000000004",
            Network(1, 3),
            "replicate 1 · round 3 · random mask 2 · learning rate 0.30000000000000004",
        ),
        (
            Network(1, 3, "no_rewinding", 0, 0.003),
            "replicate-1/round-03/no_rewinding-0-lr-0.003",
            Network(1, 2, "no_rewinding", 0, 0.003),
            "replicate 1 · round 3 · no rewinding · learning rate 0.003",
        ),
        (
            Network(1, 1, "no_rewinding", 0, 0.003),
            "replicate-1/round-01/no_rewinding-0-lr-0.003",
            Network(1, 0),
            "replicate 1 · round 1 · no rewinding · learning rate 0.003",
        ),
    ],
)
def test_a_network_has_a_folder_a_need_and_a_name(network, folder, needs, name):
    assert network.folder("out") == Path("out") / folder
    assert (network.needs(), str(network)) == (needs, name)
    line = network.labels() | {"density": 0.5}
    if network.learning_rate is not None:
        line |= {"recipe_learning_rate": 0.001, "learning_rate": network.learning_rate}
    assert Network.of_line(line) == network


def test_the_recipes_own_learning_rate_makes_no_other_network():
    line = {"replicate": 0, "round": 1, "control": "random_mask", "learning_rate": 0.001}
    assert (
        Network.of_line(line)
        == Network.of_line(line | {"recipe_learning_rate": 0.001})
        == Network(0, 1, "random_mask")
    )


@pytest.mark.parametrize("wrong", [{}, {"learning_rate": "x"}, {"learning_rate": -1}, {"learning_rate": float("nan")}])
def test_a_line_with_another_rate_that_is_none_names_no_network(wrong):
    with pytest.raises((ValueError, KeyError)):
        Network.of_line({"replicate": 0, "round": 1, "control": "set", "recipe_learning_rate": 0.001} | wrong)


def test_an_old_line_without_a_sample_is_of_the_first():
    assert Network.of_line({"replicate": 0, "round": 1, "control": "random_mask"}) == Network(0, 1, "random_mask", 0)


def test_every_network_is_planned_after_what_it_needs():
    controls = [SimpleNamespace(name="one_shot", rounds=[2], per_ticket=2)]
    controls += [SimpleNamespace(name="random_mask", rounds=None, per_ticket=1)]
    controls += [SimpleNamespace(name="no_rewinding", rounds=[1, 3], per_ticket=2)]  # its round 2 is planned too
    networks = planned_networks(3, 2, controls)
    assert len(networks) == len(set(networks)) == 2 * (4 + 2 + 3 + 6)
    seen = set()
    for network in networks:
        assert network.needs() is None or network.needs() in seen
        seen.add(network)


def test_networks_at_other_learning_rates_are_planned_after_what_they_need():
    controls = [SimpleNamespace(name="random_mask", rounds=[2], per_ticket=2)]
    controls += [SimpleNamespace(name="no_rewinding", rounds=[2], per_ticket=1)]
    controls += [SimpleNamespace(name="one_shot", rounds=None, per_ticket=1)]
    rates = learning_rates(0.01, {"random_mask": [0.01, 0.03], "no_rewinding": [0.1, 0.2, 0.3]}, tune=True)
    networks = planned_networks(2, 2, controls, rates)
    # rounds 0 to 2, and one_shot of two rounds, at five rates; two samples of random_mask at two; two rounds at three
    assert len(networks) == len(set(networks)) == 2 * (3 * 5 + 2 * 5 + 2 * 2 + 2 * 3)
    assert len({network.folder("out") for network in networks}) == len(networks)
    seen = set()
    for network in networks:
        assert network.needs() is None or network.needs() in seen
        seen.add(network)
    assert sorted(networks)[:3] == [Network(0, 0), Network(0, 0, learning_rate=0.03), Network(0, 0, learning_rate=0.1)]


def test_a_control_at_a_round_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="one_shot is asked for at round 4; rounds are 1 to 3"):
        planned_networks(3, 1, [SimpleNamespace(name="one_shot", rounds=[1, 4], per_ticket=1)])


def test_the_trainers_state_has_the_name_that_transformers_gives_it():
    assert STATE_FILE == TRAINER_STATE_NAME


def test_nothing_heavy_is_imported():
    script = "import sys, hf_lottery.layout; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
