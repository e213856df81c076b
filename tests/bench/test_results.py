"""What a benchmark says about its figures: ratios, disturbed runs, goals reached and missed."""

import pytest
import rangespec
from rangespec import Goal, goals, missed, report, verdict
from results import disturbed, ratios, table

RESULTS = {
    "plain": {"burst 20": {"seconds": {"succeeded": 2.0}, "foreignPercent": 1.0}},
    "trainyard": {
        "burst 20": {"seconds": {"succeeded": 3.0, "job": 1.0}, "foreignPercent": 31.4},
        "steady": {"milliseconds": {"job": {"p50": 18.0}}, "foreignPercent": 0.0},
    },
}
AGAINST_PLAIN = Goal(
    "against plain",
    ("trainyard", "burst 20", "seconds", "succeeded"),
    over=("plain", "burst 20", "seconds", "succeeded"),
    most=1.6,
)


def test_a_ratio_is_given_where_both_have_the_figure():
    assert ratios(RESULTS, "trainyard") == {"burst 20": {"seconds: succeeded": {"plain": 1.5}}}


def test_without_our_own_run_there_is_no_ratio():
    assert ratios({"plain": RESULTS["plain"]}, "trainyard") == {}


def test_the_table_shows_all_systems_and_the_ratio_beside_them(capsys: pytest.CaptureFixture[str]):
    table(RESULTS, ratios(RESULTS, "trainyard"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("seconds: succeeded"))
    assert line.split()[2:] == ["2.0", "3.0", "1.5"]


def test_a_run_beside_which_others_worked_is_named():
    assert "trainyard burst 20 (31 % of the machine)" in disturbed(RESULTS)
    assert "steady" not in disturbed(RESULTS)
    assert "no run" in disturbed({"plain": RESULTS["plain"]})


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (AGAINST_PLAIN, ("reached", 1.5)),
        (Goal("exactly", ("trainyard", "burst 20", "seconds", "succeeded"), most=3.0), ("reached", 3.0)),
        (Goal("too slow", ("trainyard", "burst 20", "seconds", "succeeded"), most=2.9), ("missed", 3.0)),
        (Goal("too few", ("trainyard", "burst 20", "seconds", "job"), least=1.1), ("missed", 1.0)),
        (Goal("other size", ("trainyard", "burst 1000", "seconds", "job"), most=1), ("not measured", None)),
        (Goal("no peer", ("trainyard", "steady", "milliseconds", "job", "p50"), over=("kueue",), most=1), ("not measured", None)),
    ],
)  # fmt: skip
def test_a_goal_is_reached_or_missed_or_not_measured(goal: Goal, expected: tuple[str, float | None]):
    found = verdict(goal, RESULTS)
    assert (found["verdict"], found["value"]) == expected


def test_a_miss_is_printed_with_value_and_goal_and_counts(capsys: pytest.CaptureFixture[str]):
    wanted = [AGAINST_PLAIN, Goal("in time", ("trainyard", "burst 20", "seconds", "job"), most=0.5, unit="s")]
    verdicts = report(wanted, RESULTS)
    reached, line = capsys.readouterr().out.splitlines()
    assert reached.split()[0] == "reached"
    assert line.split() == ["missed", "in", "time", "1", "goal", "<=", "0.5", "s"]
    assert missed(verdicts)
    assert not missed(verdicts[:1])


@pytest.mark.parametrize("benchmark", ["operator", "waiting", "apply", "failover", "intake"])
def test_every_committed_goal_can_be_missed(benchmark: str):
    for goal in goals(benchmark):
        value = {"most": (goal.most or 0) + 1, "least": (goal.least or 0) - 1}[
            "most" if goal.least is None else "least"
        ]
        assert not goal.reached(value)


def test_a_goal_without_a_bound_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rangespec.yaml").write_text("operator: [{what: speed, value: [trainyard]}]")
    monkeypatch.setattr(rangespec, "FILE", tmp_path / "rangespec.yaml")
    with pytest.raises(ValueError, match="either `most` or `least`"):
        goals("operator")
