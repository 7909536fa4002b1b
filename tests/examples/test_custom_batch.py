from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tidegate import Client, InvalidInput

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


def test_graphs_share_a_batch_and_each_caller_gets_the_ranks_of_its_own_nodes(served: Served, ask: Ask) -> None:
    ring = {"nodes": ["a", "b"], "edges": [[0, 1], [1, 0]]}
    star = {"nodes": ["hub", "x", "y"], "edges": [[1, 0], [2, 0]]}
    lonely = {"nodes": ["alone"], "edges": []}
    with served("custom_batch") as url:
        packages = ask("custom_batch", url).splitlines()
        with Client(f"{url}/pagerank") as client:
            ranks = list(client.map([ring, star, lonely] * 20))
            alone = [client.call(graph) for graph in (ring, star, lonely)]
            with pytest.raises(InvalidInput, match="an edge must join two of the nodes 0 to 0"):
                client.call({"nodes": ["a"], "edges": [[0, 1]]})
            with pytest.raises(InvalidInput, match="a graph needs a node"):
                client.call({"nodes": [], "edges": []})
    assert len(packages) == 7
    assert all(": " in line for line in packages)
    assert ranks == alone * 20
    assert alone[0] == {"a": 0.5, "b": 0.5}
    # h = 0.05 + 0.85 (2 x + h / 3) and x = 0.05 + 0.85 h / 3: the hub is a dead end and gives to all three alike.
    assert alone[1] == pytest.approx({"hub": 0.5745, "x": 0.2128, "y": 0.2128}, abs=1e-4)
    assert alone[2] == {"alone": 1.0}
