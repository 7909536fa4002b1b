import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_tests_that_a_user_would_write_pass(tmp_path: Path) -> None:
    script = ROOT / "examples" / "testing_a_handler.py"
    assert "    pytest examples/testing_a_handler.py\n" in script.read_text()
    # Elsewhere, so that it is not this project's pytest configuration which makes it work.
    copy = tmp_path / script.name
    copy.write_text(script.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", copy.name]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "8 passed" in ran.stdout
