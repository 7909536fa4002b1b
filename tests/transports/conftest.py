import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Workers and doors are asyncio's; trio is for the core alone."""
    return "asyncio"
