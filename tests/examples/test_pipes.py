import os
import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "pipes.sh"


def test_the_recipes_run_as_they_are(tidegate: str) -> None:
    assert "#     bash examples/pipes.sh\n" in SCRIPT.read_text()
    path = f"{Path(tidegate).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    _, whole, field, cut_off, pieces, failed, parts = re.split(r"^== .+\n", ran.stdout, flags=re.MULTILINE)
    assert re.fullmatch(r'( +\d+ "[\w-]+"\n){3}', whole)
    assert field == "no jq here\n" or re.fullmatch(r"(\d+\t.+\n){1,3}", field)
    assert cut_off == "the same 300 lines\n"
    assert pieces == "the same from 3 files\n"
    assert re.fullmatch(r'"break"\n\{"error":\{"code":"invalid-input".+"line":2\}\}\n"lambda"\nstatus 1\n', failed)
    assert parts in ("no parallel here\n", "the same again\n")
