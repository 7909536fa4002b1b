"""What came of a load: counted as it happens, and the frozen figures that are left of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tidegate.bench.latency import Latencies, LatencySummary
from tidegate.bench.sender import Ending

__all__ = ["Generator", "Measurement", "Record"]

BUSY = 0.9
"""Share of a core from which on the generator may be what limits."""

LATE = 0.002
"""Seconds by which requests may leave late, in the 99th percentile, before that is told."""

LATE_SHARE = 0.1
"""What part of the service's own p99 they may be late for all that."""


@dataclass(frozen=True, slots=True)
class Generator:
    """How the load generator itself did.

    cpu: seconds of CPU per second. late_p99, late_max: seconds by which requests left after they were due, 0 in a closed
    loop. lag_p99, lag_max: seconds by which its event loop was late for a timer. waited: requests that found all
    connections taken. shared: whether the service runs in the same process.
    """

    cpu: float
    late_p99: float
    late_max: float
    lag_p99: float
    lag_max: float
    waited: int
    shared: bool = False

    def complaint(self, p99: float | None) -> str | None:
        """Why figures may be the generator's and not the service's; None if there is no reason to think so.

        p99: of the latencies, since what delays 10 s does not delay 10 ms.
        """
        allowed = max(LATE, LATE_SHARE * (p99 or 0.0))
        busy = "" if self.cpu >= BUSY / 2 else f"; at {self.cpu:.0%} CPU, so something else keeps this machine busy"
        if self.late_p99 > allowed:
            return f"requests left late: p99 {1000 * self.late_p99:.1f} ms, at most {1000 * self.late_max:.1f} ms{busy}"
        if self.waited:
            return f"{self.waited:,} requests waited here for a connection: raise --max-connections"
        if self.shared:
            return None  # what the loop and the CPU do is the service's as well
        if self.lag_p99 > allowed:
            lag = f"p99 {1000 * self.lag_p99:.1f} ms, at most {1000 * self.lag_max:.1f} ms"
            return f"its event loop was late: {lag}{busy}"
        if self.cpu >= BUSY:
            return f"it used {self.cpu:.0%} of a core, which is all that it can"
        return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one load.

    offered: requests due per second, None in a closed loop. duration: seconds measured. sent: requests that were due in
    that time; every other count is of these. throughput: good answers per second of it, goodput: those among them
    within the latency bound. latency: of good answers; error_latency: of the others. refused: 429, 503 and 504;
    timeouts: without an answer in time; failed: for any other reason. details: a text per code. mean_batch and
    cpu_per_1000, the service's CPU seconds per 1,000 answers, are None where nobody tells.
    """

    offered: float | None
    duration: float
    sent: int
    ok: int
    refused: int
    timeouts: int
    failed: int
    throughput: float
    goodput: float | None
    latency: LatencySummary
    error_latency: LatencySummary
    codes: dict[str, int]
    details: dict[str, str]
    generator: Generator
    mean_batch: float | None = None
    cpu_per_1000: float | None = None
    interrupted: bool = False

    @property
    def answered_all(self) -> bool:
        """Whether there was a good answer to everything."""
        return self.ok == self.sent > 0

    @property
    def complaint(self) -> str | None:
        """What is wrong with the generator, if something is."""
        return self.generator.complaint(self.latency.quantiles["p99"])


@dataclass(slots=True)
class Record:
    """Counts while a load runs; times are on one clock.

    opens, closes: requests due from the one to before the other count. ok_in_window: good answers that came then,
    whenever they were asked for: in a steady state that is the throughput, and under overload it is still what the
    service did and not what was asked of it.
    """

    opens: float
    closes: float
    good: Latencies = field(default_factory=Latencies)
    bad: Latencies = field(default_factory=Latencies)
    late: Latencies = field(default_factory=Latencies)
    lag: Latencies = field(default_factory=Latencies)
    codes: Counter[Ending] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    ok_in_window: int = 0
    ended_in_window: int = 0
    last_end: float = 0.0
    cpu: float = 0.0
    waited: int = 0
    interrupted: bool = False
    before: Any = None
    after: Any = None

    def sending(self, due: float, late: float | None) -> None:
        """A request leaves, so many seconds late; None where it is due when it leaves."""
        if self.opens <= due < self.closes:
            self.sent += 1
            if late is not None:
                self.late.add(late)

    def forget(self, due: float) -> None:
        """A request that was sent will not be waited for."""
        if self.opens <= due:
            self.sent -= 1

    def ended(self, due: float, ending: Ending, at: float) -> None:
        """A request has ended."""
        good = ending.code == "ok"
        if self.opens <= at < self.closes:
            self.ended_in_window += 1
            self.ok_in_window += good
        if not self.opens <= due < self.closes:
            return
        if at > self.last_end:
            self.last_end = at
        if good:
            self.good.add(at - due)
        else:
            self.bad.add(at - due)
            self.codes[Ending(ending.code, ending.status)] += 1
            self.details.setdefault(ending.code, ending.detail)

    def measurement(self, offered: float | None, bound: float | None, *, shared: bool = False) -> Measurement:
        """The figures. bound: seconds for what counts as goodput."""
        duration = max(self.closes - self.opens, 1e-9)
        counts = {"refused": 0, "timeouts": 0, "failed": 0}
        for ending, count in self.codes.items():
            kind = "refused" if ending.is_refusal else "timeouts" if ending.code == "timeout" else "failed"
            counts[kind] += count
        codes: Counter[str] = Counter()
        for ending, count in self.codes.most_common():
            codes[f"{ending.status} {ending.code}" if ending.status else ending.code] += count
        late, lag = self.late.summary(), self.lag.summary()
        generator = Generator(
            cpu=self.cpu / duration,
            late_p99=late.quantiles["p99"] or late.max or 0.0,
            late_max=late.max or 0.0,
            lag_p99=lag.quantiles["p99"] or lag.max or 0.0,
            lag_max=lag.max or 0.0,
            waited=self.waited,
            shared=shared,
        )
        return Measurement(
            offered=offered,
            duration=duration,
            sent=self.sent,
            ok=len(self.good),
            throughput=self.ok_in_window / duration,
            goodput=None if bound is None else self.good.within(bound) / duration,
            latency=self.good.summary(),
            error_latency=self.bad.summary(),
            codes=dict(codes),
            details=dict(self.details),
            generator=generator,
            interrupted=self.interrupted,
            **counts,
        )
