"""A handler in a FastAPI application: behind the application's own routes, and beside them.

    python examples/in_fastapi.py
    python examples/in_fastapi.py ask

The handler answers at `/models/page`, with its `/models/docs`, `/models/readyz` and `/models/metrics`. The route
`/help` asks the same handler and adds what the application knows; its questions share batches with everybody else's.
Under uvicorn's own command: `uvicorn --app-dir examples in_fastapi:api`.
"""

import sys
from pydoc_data.topics import topics  # a dict of texts, for help()
from typing import NamedTuple

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from sklearn.feature_extraction.text import TfidfVectorizer

from tidegate import App, Client, serve


class Index(NamedTuple):
    """The words of every page, weighed by how rare they are, and the pages' names."""

    vectorizer: TfidfVectorizer
    pages: np.ndarray
    names: list[str]


def read_pages(device: str) -> Index:
    vectorizer = TfidfVectorizer(stop_words="english")
    return Index(vectorizer, vectorizer.fit_transform(topics.values()), list(topics))


@serve(max_batch_size=64, setup=read_pages)
def page(index: Index, questions: list[str]) -> list[str]:
    """A question to the name of the page of Python's documentation that is nearest."""
    near = index.vectorizer.transform(questions) @ index.pages.T
    return [index.names[best] for best in near.toarray().argmax(axis=1)]


models = App(page)

# `lifespan` starts the workers before the first request and lets them finish at the end. FastAPI tells a mounted
# application neither; without it the first request would start them, and wait.
api = FastAPI(title="help", lifespan=models.lifespan)
api.mount("/models", models.asgi())


@api.get("/help")
async def answer(question: str) -> dict[str, str]:
    """The page that a question is about, and how it begins."""
    name = await models.call("page", question)
    return {"page": name, "text": topics[name].split("\n\n")[1]}


def ask(url: str) -> None:
    with Client(f"{url}/models/page") as client:
        for question in ("How does a for loop end early?", "What does a lambda expression give?"):
            print(f"{question} help({client.call(question)!r})")
    response = httpx.get(f"{url}/help", params={"question": "When does assert raise an error?"})
    print(response.raise_for_status().json())


# The worker processes import this file, too, and must not serve: what starts the service stands behind this line.
if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        ask(sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000")
    else:
        uvicorn.run(api, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
