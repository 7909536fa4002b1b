from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Workers and doors are asyncio's; trio is for the core alone."""
    return "asyncio"


TRANSPORT = '''
from contextlib import asynccontextmanager


class Null:
    """A door that leads nowhere and notes what happens to it."""

    def __init__(self, address):
        self.url = f"null://{address}"
        self.notes = []

    @asynccontextmanager
    async def serve(self, app):
        self.notes.append(f"opened with {', '.join(app.handlers)}")
        try:
            yield
        finally:
            self.notes.append("closed")
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with an installed distribution that publishes the transport `null`."""
    folder = tmp_path / "site"
    metadata = folder / "nowhere-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "nowhere.py").write_text(TRANSPORT)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nowhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tidegate.transports]\nnull = nowhere:Null\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder
