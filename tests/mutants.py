"""Does the suite notice when the core is wrong? Break it on purpose, in one place at a time, and see.

    python tests/mutants.py                  every mutant, two at a time; exit 1 if one survives
    python tests/mutants.py clock sealed     those whose name contains a word
    TIDEGATE_MUTANTS_TESTS=scheduler_machine python tests/mutants.py     what one file notices

Each mutant is a copy of `tidegate_batching` with one string replaced, put first on PYTHONPATH.
"""

# ruff: noqa: T201 - a script
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "batching" / "tidegate_batching"
# After the module's own tests, those of the whole; the machine is for what they miss.
TESTS = os.environ.get("TIDEGATE_MUTANTS_TESTS", "MODULE scheduler scheduler_machine").split()


class Mutant(NamedTuple):
    name: str
    module: str
    old: str
    new: str


MUTANTS = [
    # what comes in
    Mutant("the clock may step back", "scheduler", "or reorder arrivals.\n        if now > self._now:", "or reorder arrivals.\n        if True:"),
    Mutant("priority does not count", "scheduler", "item.key = (item.priority,", "item.key = (0,"),
    Mutant("the queue takes one too many", "scheduler", "or self.waiting >= self._max_queue_size", "or self.waiting > self._max_queue_size"),
    Mutant("bytes are not bounded", "scheduler", "or nbytes > self._max_queue_bytes", "or nbytes > 10**30"),
    Mutant("bytes are never given back", "scheduler", "self._queued_bytes -= nbytes", "pass"),
    Mutant("cancelled twice", "scheduler", "if item.state is _SETTLED or item.state", "if item.state"),
    Mutant("a chunk disarms nothing", "scheduler", "item.deadline = inf\n", "pass\n"),
    # when a batch goes
    Mutant("dispatched at its deadline", "expiry", "while self.next() <= now:", "while self.next() < now:"),
    Mutant("the window opens with the loop", "scheduler", "lane.opened_at() + timeout", "self._now + timeout"),
    Mutant("closing does not hurry", "scheduler", "return Release.DRAIN", "pass"),
    Mutant("the bell rings for ever", "scheduler", "self.due = False\n        return actions", "return actions"),
    Mutant("auto holds without end", "scheduler", "min(until, self._held_since + CEILING)", "until"),
    Mutant("timers are believed punctual", "scheduler", " + PUNCTUALITY\n", "\n"),
    Mutant("the last group goes first", "scheduler", "lane.head().key < best[0]", "lane.head().key > best[0]"),
    Mutant("a full group waits for its window", "scheduler", "lane.live >= limit or", "False or"),
    Mutant("the next batch is sent ahead at once", "scheduler", "if at <= self._now or size == self._memory.cap:", "if True:"),
    Mutant("the next batch is sent ahead too late", "scheduler", "preparation = PREPARATION_MARGIN *", "preparation = 0 *"),
    Mutant("prepared batches are mixed up", "slot", "for flight in (self.current, self.following) if flight and not",
           "for flight in (self.following, self.current) if flight and not"),
    # who goes with whom
    Mutant("late comers go last", "lane", "if not ordered or item.key > ordered[-1].key:", "if True:"),
    Mutant("put back as its own tombstone too", "lane", " and item not in back]", "]"),
    Mutant("the window of one who left", "lane", "while self._arrivals[0].state is not _QUEUED:", "while False:"),
    Mutant("tombstones stay in order", "lane", "if len(ordered) > 2 * self.live + 64:", "if False:"),
    Mutant("tombstones stay in time", "lane", "if len(arrivals) > 2 * self.live + 64:", "if False:"),
    Mutant("a stream's old deadline counts", "expiry", " and item.deadline == deadline", ""),
    Mutant("settled deadlines are remembered", "expiry", "2 * self._dead > len(self._heap)", "False"),
    Mutant("shedding leaves a slot idle", "shedding", "Choice(late[:1], [])", "Choice([], late)"),
    Mutant("the urgent are given up for nothing", "shedding", "if gain > min(len(small), len(given_up)) else", "if True else"),
    Mutant("the urgent are never given up", "shedding", "if gain > min(len(small), len(given_up)) else", "if False else"),
    Mutant("the costliest batch has no limit", "shedding", "        if cost > max_cost:\n            rest",
           "        if False:\n            rest"),
    Mutant("warm-up runs refuse", "scheduler", "if self._service.observations == 0:\n            return 0.0",
           "if False:\n            return 0.0"),
    # how a batch ends
    Mutant("answered although settled", "scheduler", "if item.state is not _RUNNING:\n                continue",
           "if False:\n                continue"),
    Mutant("failed although settled", "scheduler", "in verdict.fail if item.state is not _SETTLED]",
           "in verdict.fail]"),
    Mutant("the batch behind is dropped", "scheduler", "done.current, done.following = done.following, None",
           "done.current, done.following = None, None"),
    Mutant("the batch behind a dead one is lost", "scheduler", "self._put_back(lost.following.live())", "pass"),
    Mutant("a dead slot stays idle", "scheduler", "self._idle.remove(lost)", "pass"),
    Mutant("sealed groups wait for ever", "scheduler", "while self._idle and self._sealed:", "while False:"),
    Mutant("memory is learned from nothing", "scheduler", "self._memory.exhausted(len(flight.items))", "pass"),
    Mutant("a split retry mixes with fresh work", "scheduler", "if out_of_memory and group is None:",
           "if out_of_memory:"),
    Mutant("suspects run on any slot", "scheduler", "if group.slot is None:", "if True:"),
    Mutant("a broken stream is run again", "scheduler", "begun = any(item.started for item in flight.items)",
           "begun = False"),
    Mutant("loads are taken for sizes", "scheduler", "self._service.predict(n * unit)", "self._service.predict(n)"),
    Mutant("what waits is not given up", "scheduler", "(*queued, *self._retrying)", "queued"),
    Mutant("the second death condemns nobody", "retry", "if lone or self._lone_deaths >= 2:", "if lone:"),
    Mutant("nothing is systemic", "retry", "alike = len(errors) == 2 and", "alike = False and"),
    Mutant("a lone death is not the end", "retry", "lone = len(ran.members) == 1 and ran is not self._batch",
           "lone = False"),
    Mutant("the cap never shrinks", "retry", "self.cap = max(1, self._good if", "self.cap = max(self.cap, self._good if"),
]  # fmt: skip


def survives(mutant: Mutant | None) -> bool:
    """Run the tests against a mutant, or against none; whether they all pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tidegate_batching"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            path = copy / f"{mutant.module}.py"
            source = path.read_text()
            if source.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.old!r} is {source.count(mutant.old)} times in {path.name}")
            path.write_text(source.replace(mutant.old, mutant.new))
        module = "lane" if mutant is None else mutant.module
        names = dict.fromkeys(module if name == "MODULE" else name for name in TESTS)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=7"]
        environment = {
            **os.environ,
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis"),
            "TIDEGATE_MACHINE_EXAMPLES": "600",
            "TIDEGATE_MACHINE_SHRINK": "0",
        }
        try:
            run = subprocess.run(
                [*command, *(f"tests/batching/test_{name}.py" for name in names)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False  # it hangs: that is noticed too
    if run.returncode not in (0, 1):
        raise SystemExit(run.stdout + run.stderr)
    return run.returncode == 0


def main(words: list[str]) -> int:
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    if not survives(None):
        print("the tests fail without any mutant")
        return 1

    def judge(mutant: Mutant) -> bool:
        start = time.monotonic()
        survived = survives(mutant)
        verdict = "SURVIVED" if survived else "killed  "
        print(f"{verdict} {time.monotonic() - start:6.1f} s  {mutant.module:10} {mutant.name}", flush=True)
        return survived

    with ThreadPoolExecutor(max_workers=2) as pool:
        survivors = sum(pool.map(judge, chosen))
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
