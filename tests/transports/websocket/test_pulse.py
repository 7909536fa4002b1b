import pytest

from tidegate_transports.pulse import SLOWEST, GiveUp, Ping, Pulse


def pulse(ping_interval: float | None = 10.0) -> Pulse:
    return Pulse(0.0, ping_interval=ping_interval, ping_timeout=4.0, idle_timeout=100.0, write_timeout=30.0)


def test_a_quiet_client_is_asked_and_given_up_when_it_does_not_answer() -> None:
    one = pulse()
    assert one.tick(9.9, idle=False) is None
    assert one.tick(10.0, idle=False) == Ping()
    assert one.tick(13.9, idle=False) is None
    assert one.tick(14.0, idle=False) == GiveUp("silent")


def test_whatever_is_heard_is_an_answer() -> None:
    one = pulse()
    assert one.tick(10.0, idle=False) == Ping()
    one.heard(13.0)
    assert one.tick(14.0, idle=False) is None
    assert one.tick(22.9, idle=False) is None
    assert one.tick(23.0, idle=False) == Ping()


def test_nobody_is_asked_while_nothing_is_read_and_gets_all_the_time_afterwards() -> None:
    one = pulse()
    assert one.tick(10.0, idle=False) == Ping()
    one.deaf(True, 11.0)
    assert one.tick(5000.0, idle=False) is None
    one.deaf(False, 5000.0)
    assert one.tick(5009.9, idle=False) is None
    assert one.tick(5010.0, idle=False) == Ping()


def test_hearing_well_all_the_time_is_no_news() -> None:
    one = pulse()
    one.deaf(False, 5.0)
    assert one.tick(10.0, idle=False) == Ping()


def test_a_client_that_does_not_read_is_given_up_and_a_large_message_has_its_time() -> None:
    one = pulse()
    one.sending(0.0, 0)
    assert one.tick(29.9, idle=False) is None
    assert one.tick(30.0, idle=False) == GiveUp("not reading")
    other = pulse()
    other.sending(0.0, 100 * SLOWEST)
    assert other.tick(129.9, idle=False) is None
    assert other.tick(130.0, idle=False) == GiveUp("not reading")


def test_a_client_that_does_not_read_is_given_up_also_while_nothing_is_read_from_it() -> None:
    one = pulse()
    one.deaf(True, 0.0)
    one.sending(0.0, 0)
    assert one.tick(30.0, idle=False) == GiveUp("not reading")


def test_each_message_has_its_own_time() -> None:
    one = pulse(ping_interval=None)
    for second in range(1000):
        one.sending(float(second), 0)
        one.sent(second + 0.9)
        assert one.tick(second + 0.95, idle=False) is None


def test_a_question_that_stands_behind_a_message_waits_for_its_turn() -> None:
    one = pulse()
    assert one.tick(10.0, idle=False) == Ping()
    one.sending(10.0, 0)
    assert one.tick(20.0, idle=False) is None
    one.sent(20.0)
    assert one.tick(23.9, idle=False) is None
    assert one.tick(24.0, idle=False) == GiveUp("silent")


def test_a_connection_without_requests_ends_however_well_it_answers() -> None:
    one = pulse()
    one.received(50.0)
    for second in range(51, 150):
        one.heard(float(second))
        assert one.tick(float(second), idle=True) is None
    one.heard(150.0)
    assert one.tick(150.0, idle=False) is None
    assert one.tick(150.0, idle=True) == GiveUp("idle")


@pytest.mark.parametrize(("interval", "period"), [(10.0, 2.0), (None, 15.0)])
def test_it_is_looked_at_often_enough_for_its_shortest_time(interval: float | None, period: float) -> None:
    assert pulse(interval).period == period


def test_without_an_interval_nobody_is_asked() -> None:
    assert pulse(None).tick(99.0, idle=False) is None
