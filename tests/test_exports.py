import importlib
import pkgutil
from types import ModuleType

import pytest

import tidegate
import tidegate_batching
import tidegate_transports
from tidegate_batching import TidegateError

# Spelled out, so that what users import changes only where someone means it to.
PUBLIC = {
    "tidegate": [
        "END",
        "SKIP",
        "App",
        "Array",
        "BatchSizeMismatch",
        "Cancelled",
        "Client",
        "Closed",
        "DeadlineExceeded",
        "Disconnected",
        "EncodeError",
        "HTTPError",
        "Handler",
        "HandlerError",
        "InvalidInput",
        "LocalClient",
        "MalformedBody",
        "NotAcceptable",
        "OutOfMemory",
        "Overloaded",
        "Refused",
        "RunTimeout",
        "SetupFailed",
        "SlowReader",
        "Statistics",
        "TidegateError",
        "TooCostly",
        "Unavailable",
        "UnsupportedMediaType",
        "WorkerDied",
        "__version__",
        "current_batch",
        "pad",
        "run",
        "serve",
        "unpad",
    ],
    "tidegate_batching": [
        "Action",
        "Batch",
        "BatchSizeMismatch",
        "Batcher",
        "Cancelled",
        "Closed",
        "DeadlineExceeded",
        "Dispatch",
        "HTTPError",
        "HandlerError",
        "InvalidInput",
        "Item",
        "OutOfMemory",
        "Outcome",
        "Overloaded",
        "Policy",
        "Refused",
        "Release",
        "RunTimeout",
        "Scheduler",
        "Settle",
        "SlowReader",
        "State",
        "Statistics",
        "Stream",
        "TidegateError",
        "TooCostly",
        "Unavailable",
        "WorkerDied",
    ],
    "tidegate_transports": [],
}


def modules() -> list[ModuleType]:
    found = []
    for package in (tidegate_batching, tidegate, tidegate_transports):
        found.append(package)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found.append(importlib.import_module(info.name))
    return found


def public_names(module: ModuleType) -> list[str]:
    names: list[str] = getattr(module, "__all__", [])
    return names


@pytest.mark.parametrize("package", [tidegate_batching, tidegate, tidegate_transports], ids=lambda p: p.__name__)
def test_a_package_exports_exactly_these_names(package: ModuleType) -> None:
    assert public_names(package) == PUBLIC[package.__name__]


@pytest.mark.parametrize("package", [tidegate_batching, tidegate, tidegate_transports], ids=lambda p: p.__name__)
def test_a_package_holds_nothing_public_that_it_does_not_export(package: ModuleType) -> None:
    held = {
        name for name, value in vars(package).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert held - {"annotations"} == set(PUBLIC[package.__name__]) - {"__version__"}


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_name_that_a_module_exports_is_there_once(module: ModuleType) -> None:
    names = public_names(module)
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(set(names)) == len(names)


def errors_below(error: type[TidegateError]) -> set[type[TidegateError]]:
    return {error}.union(*(errors_below(child) for child in error.__subclasses__()))


def test_users_can_catch_every_error_of_the_tree_by_name() -> None:
    modules()
    ours = {error for error in errors_below(TidegateError) if error.__module__.partition(".")[0] in PUBLIC}
    assert {error.__name__ for error in ours} <= set(tidegate.__all__)
    assert all(getattr(tidegate, error.__name__) is error for error in ours)
