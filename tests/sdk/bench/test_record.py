import pytest

from tidegate.bench.record import Generator, Record
from tidegate.bench.sender import OK, Ending

QUIET = {"cpu": 0.1, "late_p99": 0.0, "late_max": 0.0, "lag_p99": 0.0, "lag_max": 0.0, "waited": 0}


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({}, None),
        ({"late_p99": 0.0015}, None),
        ({"late_p99": 0.005, "late_max": 0.1}, "left late: p99 5.0 ms, at most 100.0 ms; at 10% CPU"),
        ({"late_p99": 0.005, "late_max": 0.1, "cpu": 0.8}, "left late: p99 5.0 ms, at most 100.0 ms"),
        ({"waited": 3}, "3 requests waited here"),
        ({"lag_p99": 0.005, "lag_max": 0.05}, "event loop was late"),
        ({"cpu": 0.95}, "95% of a core"),
        ({"cpu": 1.9, "lag_p99": 0.5, "shared": True}, None),
        ({"shared": True, "late_p99": 0.005}, "left late"),
    ],
)
def test_a_generator_says_what_may_make_its_figures_its_own(figures: dict[str, float], told: str | None) -> None:
    complaint = Generator(**{**QUIET, **figures}).complaint(0.010)  # type: ignore[arg-type]
    assert (complaint is None) if told is None else (complaint is not None and told in complaint)


def test_what_is_late_for_10_ms_is_not_late_for_a_second() -> None:
    generator = Generator(**{**QUIET, "late_p99": 0.02})  # type: ignore[arg-type]
    assert generator.complaint(0.01)
    assert generator.complaint(1.0) is None


def test_only_what_was_due_in_the_window_counts_and_answers_count_when_they_come() -> None:
    record = Record(10.0, 20.0)
    for due, end in ((9.0, 11.0), (10.0, 10.5), (19.9, 25.0), (20.0, 20.1)):
        record.sending(due, 0.0)
        record.ended(due, OK, end)
    found = record.measurement(7.0, bound=1.0)
    assert (found.sent, found.ok, found.offered) == (2, 2, 7.0)
    # The one at 11 s and the one at 10.5 s came in the ten seconds.
    assert found.throughput == pytest.approx(0.2)
    assert found.goodput == pytest.approx(0.1)
    assert found.latency.max == pytest.approx(5.1)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (Ending("overloaded", 429), "refused"),
        (Ending("unavailable", 503), "refused"),
        (Ending("deadline-exceeded", 504), "refused"),
        (Ending("timeout"), "timeouts"),
        (Ending("handler-error", 500), "failed"),
        (Ending("invalid-input", 422), "failed"),
        (Ending("connection-lost"), "failed"),
    ],
)
def test_refusals_timeouts_and_failures_are_told_apart(ending: Ending, kind: str) -> None:
    record = Record(0.0, 1.0)
    record.sending(0.5, None)
    record.ended(0.5, ending, 0.6)
    found = record.measurement(None, None)
    counts = {name: getattr(found, name) for name in ("refused", "timeouts", "failed", "ok")}
    assert counts == {**dict.fromkeys(counts, 0), kind: 1}
    assert found.latency.count == 0
    assert found.error_latency.max == pytest.approx(0.1)
