"""What batching gains, and what grouping by length gains on top: the embedding and the speech example, measured.

    python examples/gain_of_batching.py text_embedding
    python examples/gain_of_batching.py speech --plot gain.svg

Each row of the table is one `max_batch_size`. All items wait at once, as in a service that has more to do than it can;
the batches are made by the real batcher, in this process. `without groups` makes them in the order of arrival, and pads
to the longest that happens to be in one.
"""

import argparse
import asyncio
import functools
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics  # a dict of texts, for help()
from random import Random
from typing import Any, NamedTuple

from tidegate import Handler, LocalClient, pad, serve

SIZES = (1, 2, 4, 8, 16, 32, 64)


class Measured(NamedTuple):
    """Items per second, items per batch, and how much of the batches was padding, from 0 to 1."""

    throughput: float
    batch: float
    waste: float


def example(name: str, count: int) -> tuple[Handler[..., Any], Any, list[Any]]:
    """A handler, what tells how long an input is, and that many inputs in random order."""
    module = importlib.import_module(name)
    inputs: list[Any]
    if name == "speech":
        handler = module.digit
        inputs = [module.record(digit, voice) for voice in module.HELD_OUT for digit in range(10)]
    else:
        handler = module.embed
        # Headlines, sentences and paragraphs of Python's documentation.
        texts = [part.strip() for text in topics.values() for part in text.replace(".  ", "\n\n").split("\n\n")]
        inputs = [text for text in texts if 20 < len(text) < 1000]
    Random(0).shuffle(inputs)
    return handler, module.length_class, (inputs * (count // len(inputs) + 1))[:count]


async def run(
    handler: Handler[..., Any], setup: Callable[[str], Any], inputs: Sequence[Any], size: int, group_by: Any
) -> Measured:
    """Ask for all inputs at once, with this batch size."""
    real = padded = batches = 0
    options = handler.options

    # The example's own function and hooks, with a look at what its batches are made of.
    @serve(
        max_batch_size=size,
        max_batch_cost=options.max_batch_cost,
        cost=options.cost,
        group_by=group_by,
        timeout=None,
        max_queue_size=len(inputs),
        setup=setup,
        decode_request=options.decode_request,
        batch=pad,
    )
    def watched(model: Any, batch: tuple[Any, Any]) -> Any:
        nonlocal real, padded, batches
        items, lengths = batch
        real += int(lengths.sum())
        padded += items.size
        batches += 1
        return handler(model, batch)

    async with LocalClient(watched) as client:
        # The first batches pay for what is loaded late.
        await asyncio.gather(*map(client.call, inputs[: 2 * size]))
        real = padded = batches = 0
        begun = time.perf_counter()
        await asyncio.gather(*map(client.call, inputs))
        seconds = time.perf_counter() - begun
    return Measured(len(inputs) / seconds, len(inputs) / batches, 1 - real / padded)


# ---------------------------------------------------------------------- the plot

COLORS = {"by length": "#0969da", "without groups": "#bf3989"}
WIDTH, HEIGHT, LEFT, TOP = 300, 200, 60, 40


def panel(x: int, title: str, series: dict[str, list[float]], labels: Sequence[int], unit: str) -> str:
    """One diagram: a line for each series over the batch sizes, which are evenly spaced."""
    top = max(max(values) for values in series.values()) or 1
    parts = [f'<text x="{x}" y="{TOP - 16}" font-weight="bold">{title}</text>']
    for tick in range(5):
        y = TOP + HEIGHT - HEIGHT * tick / 4
        parts.append(f'<path d="M{x} {y}h{WIDTH}" stroke="#8884"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{top * tick / 4:,.0f}{unit}</text>')
    across = [x + WIDTH * i / (len(labels) - 1) for i in range(len(labels))]
    for place, label in zip(across, labels, strict=True):
        parts.append(f'<text x="{place}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{label}</text>')
    for name, values in series.items():
        points = " ".join(
            f"{place:.1f},{TOP + HEIGHT * (1 - value / top):.1f}" for place, value in zip(across, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[name]}" stroke-width="2"/>')
    return "\n".join(parts)


def svg(results: dict[str, list[Measured]], sizes: Sequence[int], what: str) -> str:
    """Throughput on the left, padding on the right."""
    throughput = {name: [one.throughput for one in row] for name, row in results.items()}
    waste = {name: [100 * one.waste for one in row] for name, row in results.items()}
    second = LEFT + WIDTH + 90
    legend = [
        f'<text x="{LEFT + 150 * i}" y="{TOP + HEIGHT + 46}" fill="{color}">{name}</text>'
        for i, (name, color) in enumerate(COLORS.items())
    ]
    size = f"{second + WIDTH + 30} {TOP + HEIGHT + 60}"
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#57606a"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" {style}>',
            panel(LEFT, f"{what}: items per second, by max_batch_size", throughput, sizes, ""),
            panel(second, "part of the batches that is padding", waste, sizes, "%"),
            *legend,
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=["text_embedding", "speech"])
    parser.add_argument("--count", type=int, default=256, help="items in each measurement")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="values of max_batch_size")
    parser.add_argument("--plot", type=Path, help="an .svg file to draw")
    options = parser.parse_args()

    handler, length_class, inputs = example(options.example, options.count)
    assert handler.options.setup is not None
    setup = functools.cache(handler.options.setup)  # one model for all measurements
    groupings = dict(zip(COLORS, (length_class, lambda value: None), strict=True))
    results: dict[str, list[Measured]] = {name: [] for name in groupings}
    print(" " * 14 + "".join(f"{name:>31}" for name in groupings))
    print(f"{'max_batch_size':>14}" + f"{'items/s':>13} {'batch':>8} {'padding':>8}" * 2)
    for size in options.sizes:
        line = f"{size:>14}"
        for name, group_by in groupings.items():
            one = asyncio.run(run(handler, setup, inputs, size, group_by))
            results[name].append(one)
            line += f"{one.throughput:>13,.0f} {one.batch:>8.1f} {one.waste:>8.0%}"
        print(line, flush=True)
    if options.plot:
        options.plot.write_text(svg(results, options.sizes, options.example))


if __name__ == "__main__":
    main()
