"""What a type checker refuses: every line with an ignore is an error, or mypy would call the ignore unused."""

from collections.abc import Sequence

from tidegate import App, LocalClient, serve


@serve
def shout(text: str) -> str:
    return text.upper()


@serve(max_batch_size=8)
class Echo:
    def predict(self, x: list[int]) -> list[int]:
        return x


def plain(x: int) -> int:
    return x


# A handler is called as its function is.
shout(5)  # type: ignore[arg-type]
shout()  # type: ignore[call-arg]
shout("a", "b")  # type: ignore[call-arg]
number: int = shout("a")  # type: ignore[assignment]

# Options have names and types.
serve(max_batchsize=8)  # type: ignore[call-overload]
serve(max_batch_size="8")  # type: ignore[call-overload]
serve(batch_timeout="fast")  # type: ignore[call-overload]
serve(batch_timeout=None)  # type: ignore[call-overload]
serve(batch_dim=(0, 1, 2))  # type: ignore[arg-type]
serve(worker="ray")  # type: ignore[call-overload]
serve(setup=5)  # type: ignore[call-overload]
serve(timeout="30 s")  # type: ignore[call-overload]
serve(plain, 8)  # type: ignore[call-overload]
serve(plain, max_batch_size=8)  # type: ignore[call-overload]
serve(5)  # type: ignore[call-overload]

# Hooks are functions, and stay what they are.
shout.decode_request(5)  # type: ignore[type-var]
text: str = shout.batch(plain)(5)  # type: ignore[assignment]
shout.predict("a")  # type: ignore[attr-defined]

# A decorated class is still the class.
Echo("argument")  # type: ignore[call-arg]
Echo().predict("a")  # type: ignore[arg-type]
Echo.decode_request(plain)  # type: ignore[attr-defined]

# Only handlers are served, and only classes that could be.
App(plain)  # type: ignore[arg-type]
App("shout")  # type: ignore[arg-type]
App(shout, http=8000)  # type: ignore[arg-type]
LocalClient(plain)  # type: ignore[arg-type]
LocalClient([shout])  # type: ignore[arg-type]


def sequences(names: Sequence[str]) -> None:
    serve(forward_headers=names)
    serve(forward_headers=5)  # type: ignore[call-overload]


with LocalClient(shout) as client:
    client.call("a", "b")  # type: ignore[call-arg]
    client.call("a", priority="first")  # type: ignore[arg-type]
    client.map("a", timeout=5)  # type: ignore[call-arg]
