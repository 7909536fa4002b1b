"""Ask the running digit classifier about every held-out image, many at once, and count.

python examples/image_classification_client.py [http://127.0.0.1:8000] [--clients 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections import Counter

import aiohttp
from image_classification import digits


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=64, help="requests under way at once")
    parser.add_argument("--rounds", type=int, default=5, help="times that the held-out images are asked about")
    options = parser.parse_args()

    _, images, _, labels = digits()
    questions = [(image.tolist(), int(label)) for image, label in zip(images, labels, strict=True)] * options.rounds
    waiting = iter(questions)
    right = 0
    sizes: Counter[int] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal right
        for image, label in waiting:
            async with session.post(f"{options.url}/classify", json=image) as response:
                response.raise_for_status()
                answer = await response.json()
                batch = re.search(r'batch;desc="(\d+)"', response.headers["Server-Timing"])
            right += answer["digit"] == label
            sizes[int(batch[1]) if batch else 0] += 1

    connector = aiohttp.TCPConnector(limit=options.clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(options.clients)))
        seconds = time.perf_counter() - begun

    asked = len(questions)
    batches = {size: round(n / size) for size, n in sorted(sizes.items())}
    print(f"accuracy      {right / asked:.4f} ({right} of {asked})")
    print(f"batch sizes   {', '.join(f'{n} x {size}' for size, n in batches.items())}")
    print(f"mean batch    {asked / sum(batches.values()):.1f}")
    print(f"requests/s    {asked / seconds:,.0f}")


if __name__ == "__main__":
    asyncio.run(main())
