"""LotteryConfig: what is out of range is named, with what is allowed."""

from __future__ import annotations

import pytest
from transformers import HfArgumentParser

from hf_lottery import LotteryConfig


@pytest.mark.parametrize(
    "values, says",
    [
        ({"pruning_rate": 1.0}, "pruning_rate is 1.0; it must be between 0 and 1, both excluded"),
        ({"pruning_rate": 0}, "pruning_rate is 0;"),
        ({"pruning_rates": {"fc": -0.1}}, r"pruning_rates\['fc'\] is -0.1; it must be 0 or between 0 and 1"),
        ({"num_rounds": -1}, "num_rounds is -1; it must be 0 or more"),
        ({"num_rounds": 2.5}, "num_rounds is 2.5; it must be a whole number"),
        ({"scope": "gobal"}, r"scope is 'gobal'; it must be one of .* \(did you mean 'global'\?\)"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"retraining": "none"}, "retraining is 'none'"),
        ({"pruned_value": "one"}, "it must be one of zero, init"),
        ({"pattern": "4:2"}, "pattern is '4:2'; it must be one of weight, neuron, head, rank, n:m, where 0 < n < m"),
        ({"rewind_step": 1.5}, "rewind_step is 1.5"),
        ({"rewind_step": -1}, "rewind_step is -1"),
        ({"rewind_step": True}, "rewind_step is True; it must be a number"),
    ],
)
def test_out_of_range(values, says):
    with pytest.raises(ValueError, match=says):
        LotteryConfig(**values)


@pytest.mark.parametrize("k, steps, expected", [(0, 10, 0), (3, 10, 3), (0.5, 11, 6), (0.03, 100, 3), (0.001, 10, 1)])
def test_the_rewind_step_as_warmup_steps(k, steps, expected):
    assert LotteryConfig(rewind_step=k).resolve_rewind_step(steps) == expected


def test_transformers_argument_parser_reads_it():
    (config,) = HfArgumentParser(LotteryConfig).parse_args_into_dataclasses(
        ["--num_rounds", "2", "--criterion", "snip", "--rewind_step", "0.1"]
    )
    assert config == LotteryConfig(num_rounds=2, criterion="snip", rewind_step=0.1)
    (config,) = HfArgumentParser(LotteryConfig).parse_args_into_dataclasses([])
    assert config == LotteryConfig()
