"""`python -m tidegate.cli.bench_service`: the command line in a process that ends when whoever started it does."""

from __future__ import annotations

import os
import signal
import threading

from tidegate.cli import main


def _end_with_parent() -> None:
    # The other end of standard input is the parent's, and closes with it, however that ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(prog_name="tidegate")
