"""Batch something that is no array: graphs, put side by side into one large graph.

    tidegate serve examples/custom_batch.py
    python examples/custom_batch.py

The client reads which modules of Python's own packages import which, and asks for the PageRank of each package: the
module that many others lean on comes first. Graphs of any size share a batch, since a batch is one graph, too: that of
all nodes, where no edge leads from one caller's part to another's.
"""

import ast
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from scipy.sparse import csr_array

from tidegate import Client, serve

DAMPING = 0.85


class Graph(Struct):
    """What a caller sends: `{"nodes": ["a", "b"], "edges": [[0, 1]]}`, an edge from a to b."""

    nodes: list[str]
    edges: list[tuple[int, int]]

    def __post_init__(self) -> None:
        # Checked at the door: who sends a bad graph gets 422 and this text, and nobody else notices.
        if not self.nodes:
            raise ValueError("a graph needs a node")
        if any(not 0 <= end < len(self.nodes) for edge in self.edges for end in edge):
            raise ValueError(f"an edge must join two of the nodes 0 to {len(self.nodes) - 1}")


class Batch(NamedTuple):
    """All graphs as one: each caller's nodes, where they begin among all, and where the last ends; and every edge."""

    names: list[list[str]]
    starts: np.ndarray
    edges: np.ndarray


def side_by_side(graphs: list[Graph]) -> Batch:
    """One graph of all: the nodes of the second are numbered after those of the first, and so on."""
    names = [graph.nodes for graph in graphs]
    starts = np.cumsum([0, *map(len, names)])
    edges = [
        np.array(graph.edges, int).reshape(-1, 2) + start for graph, start in zip(graphs, starts[:-1], strict=True)
    ]
    return Batch(names, starts, np.concatenate(edges))


def apart(output: tuple[Batch, np.ndarray]) -> list[dict[str, float]]:
    """What each caller gets: the ranks of its own nodes by name, the highest first."""
    batch, ranks = output
    answers = []
    for names, own in zip(batch.names, np.split(ranks, batch.starts[1:-1]), strict=True):
        answers.append({names[i]: round(float(own[i]), 4) for i in np.argsort(-own, kind="stable")})
    return answers


EXAMPLE = Graph(["a", "b", "c"], [(0, 1), (2, 1)])


@serve(max_batch_size=64, batch=side_by_side, unbatch=apart, warmup=EXAMPLE)
def pagerank(batch: Batch) -> tuple[Batch, np.ndarray]:
    """The PageRank of every node, in each graph adding up to 1, by fifty multiplications with one sparse matrix."""
    sizes = np.diff(batch.starts)
    size = np.repeat(sizes, sizes)  # per node, how many there are in its graph
    graph = np.repeat(np.arange(len(sizes)), sizes)  # and which graph that is
    source, target = batch.edges.T
    outgoing = np.bincount(source, minlength=len(size))
    step = csr_array((1 / outgoing[source], (target, source)), shape=(len(size), len(size)))
    ranks = 1 / size
    for _ in range(50):
        # A node without outgoing edges gives its rank to all nodes of its own graph.
        stuck = np.bincount(graph, ranks * (outgoing == 0))[graph]
        ranks = (1 - DAMPING) / size + DAMPING * (step @ ranks + stuck / size)
    return batch, ranks


def imported(statement: ast.AST, package: str) -> list[str]:
    """The names of what may be modules in an import of either kind, and nothing in any other statement."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        above = package if statement.level else ""
        module = ".".join(filter(None, [above, statement.module]))
        return [module, *(f"{module}.{alias.name}" for alias in statement.names)]
    return []


def imports(package: str) -> Graph:
    """A package of the standard library as a graph: an edge leads from a module to one that it imports."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    files = sorted(file for file in folder.glob("*.py") if file.stem != "__init__")
    numbers = {f"{package}.{file.stem}": number for number, file in enumerate(files)}
    edges = {
        (source, numbers[name])
        for source, file in enumerate(files)
        for statement in ast.walk(ast.parse(file.read_text()))
        for name in imported(statement, package)
        if name in numbers
    }
    return Graph(list(numbers), sorted(edges))


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    packages = ["asyncio", "concurrent.futures", "email", "http", "importlib", "json", "xml.sax"]
    graphs = [imports(package) for package in packages]
    with Client(url) as client:
        for package, graph, ranks in zip(packages, graphs, client.map(graphs), strict=True):
            best = ", ".join(f"{name} {rank:.3f}" for name, rank in list(ranks.items())[:3])
            print(f"{package:<19} {len(graph.nodes):>2} modules, {len(graph.edges):>3} imports: {best}")


if __name__ == "__main__":
    main()
