"""Two handlers in one service. They know nothing of each other; a caller names the one that is meant.

    tidegate serve examples/multi_handler.py
    python examples/multi_handler.py

Each has its own queue, its own batches and its own worker processes: a flood of questions to one does not slow the
other down. `tidegate serve one.py other.py` serves the handlers of several files in the same way, and
`tidegate serve examples/multi_handler.py:flower` only one of this file's.
"""

import sys
from pydoc_data.topics import topics  # a dict of texts, for help()
from typing import Annotated, NamedTuple

import numpy as np
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tidegate import Array, Client, serve

# ---------------------------------------------------------------------- flowers

Lengths = Annotated[np.ndarray, Array("float64", (4,))]
FLOWERS = ["setosa", "versicolor", "virginica"]


def learn_flowers(device: str) -> Pipeline:
    measured, names = load_iris(return_X_y=True)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(measured, names)


@serve(max_batch_size=256, setup=learn_flowers, warmup=np.ones(4))
def flower(model: Pipeline, lengths: Lengths) -> list[str]:
    """Length and width of sepal and petal, in centimetres, to the species of iris."""
    return [FLOWERS[number] for number in model.predict(lengths)]


# ---------------------------------------------------------------------- texts


class Index(NamedTuple):
    """The words of every page, weighed by how rare they are, and the pages' names."""

    vectorizer: TfidfVectorizer
    pages: np.ndarray
    names: list[str]


def read_pages(device: str) -> Index:
    vectorizer = TfidfVectorizer(stop_words="english")
    return Index(vectorizer, vectorizer.fit_transform(topics.values()), list(topics))


@serve(max_batch_size=32, setup=read_pages, warmup="a loop")
def page(index: Index, questions: list[str]) -> list[str]:
    """A question to the name of the page of Python's documentation that is nearest."""
    near = index.vectorizer.transform(questions) @ index.pages.T
    return [index.names[best] for best in near.toarray().argmax(axis=1)]


# ---------------------------------------------------------------------- a caller


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    questions = ["When is a finally clause executed?", "How is a lambda written?", "What does yield do in a generator?"]
    with Client(url) as client:
        for question, name in zip(questions, client.map(questions, handler="page"), strict=True):
            print(f"{question:<36} help({name!r})")

        measured, right = load_iris(return_X_y=True)
        named = list(client.map(measured, handler="flower"))
        hits = sum(name == FLOWERS[number] for name, number in zip(named, right, strict=True))
        print(f"{hits} of {len(named)} irises named as a botanist named them")

    # A client for one of them takes its name from the address.
    with Client(f"{url}/flower") as flowers:
        print("5.1 x 3.5 cm, 1.4 x 0.2 cm:", flowers.call([5.1, 3.5, 1.4, 0.2]))


if __name__ == "__main__":
    main()
