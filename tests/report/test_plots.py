import pytest

from hf_lottery.report import plots, style
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from tests.result_lines import lines


def series(figure):
    """Label -> (x, y) of the error-bar containers."""
    (axes,) = figure.axes
    return {c.get_label(): (c.lines[0].get_xdata(), c.lines[0].get_ydata()) for c in axes.containers}


def test_accuracy_against_density_shows_the_means_of_ticket_and_controls():
    results = Results(lines())
    figure = plots.metric_against_density(results)
    (axes,) = figure.axes
    found = series(figure)
    assert set(found) == {"ticket", "random reinit", "random mask"}
    for control, (x, y) in found.items():
        name = control.replace(" ", "_")
        rounds = results.rounds(name)
        assert x == pytest.approx([results.density(name, r) for r in rounds], rel=0.02)
        means = [sum(v.values()) / 5 for v in (results.values("test_accuracy", name, r) for r in rounds)]
        assert y == pytest.approx(means)
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 1 > right  # density falls to the right
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100%", "51.0%", "26.2%", "13.7%", "7.12%"]


@pytest.mark.parametrize("bars", plots.BARS)
def test_bars_are_min_max_or_the_interval(bars):
    results = Results(lines())
    figure = plots.metric_against_density(results, bars=bars)
    container = next(c for c in figure.axes[0].containers if c.get_label() == "ticket")
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    values = list(results.values("test_accuracy", "ticket", 0).values())
    if bars == "min-max":
        assert (low, high) == pytest.approx((min(values), max(values)))
    else:
        assert low == pytest.approx(plots.estimate(values).low)


def test_other_bars_are_refused():
    with pytest.raises(ValueError, match="bars is 'sd'; it must be one of min-max, interval"):
        plots.metric_against_density(Results(lines(1)), bars="sd")


def test_every_control_is_told_apart_without_colour():
    looks = [(marker, str(line)) for marker, line, _ in style.STYLES.values()]
    assert len({marker for marker, _ in looks}) == len({line for _, line in looks}) == len(looks)


def test_early_stop_steps():
    found = series(plots.early_stop_against_density(Results(lines(1))))
    assert list(found["ticket"][1]) == [1000, 800, 600, 1000, 1500]


def test_density_per_layer_is_counted():
    (axes,) = plots.density_per_layer(Results(lines(2))).axes
    lines_ = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines_["51.0% (round 1)"] == pytest.approx([500 / 1000, 100 / 200, 37 / 50])


def test_learning_curves_are_means_and_leave_the_first_steps_out_of_the_range():
    steps = {1: [0.1, 0.1], 50: [0.90, 0.92], 100: [0.96, 0.98]}
    (axes,) = plots.learning_curves({"100%": steps}, Metric("accuracy")).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.1, 0.91, 0.97])
    # from step 50 on values lie in 0.90 to 0.98; as much again is left below for the rise
    assert axes.get_ylim() == pytest.approx((0.82, 0.988))


def test_spread_keeps_both_ends():
    assert style.spread([1, 2, 3], 6) == [1, 2, 3]
    assert style.spread(list(range(20)), 4) == [0, 6, 13, 19]


def test_files_are_written_and_come_out_the_same_twice(tmp_path):
    first, second = (
        style.save(plots.metric_against_density(Results(lines(2))), tmp_path / name, "accuracy") for name in "ab"
    )
    assert [path.name for path in first] == ["accuracy.png", "accuracy.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_text() == second[1].read_text()
