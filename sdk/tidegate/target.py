"""Find handlers by what a user types: `file.py`, `file.py:name`, `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tidegate.handler import Handler, handler_of, is_handler

__all__ = ["TargetError", "find_handlers", "is_loading"]


_loading = 0
_LOADED = "__tidegate_loaded__"


class TargetError(Exception):
    """What was looked for is not there; the text says what is."""


def find_handlers(target: str) -> list[Handler[..., Any]]:
    """The handlers that a target names: all of a module's, or the one after the colon.

    Raises TargetError if there is no such file, module or name. What the module itself raises passes through.
    """
    global _loading
    place, _, name = target.partition(":")
    _loading += 1
    try:
        module = _from_file(Path(place)) if place.endswith(".py") or "/" in place else _from_name(place)
    finally:
        _loading -= 1
    handlers = {key: handler_of(value) for key, value in vars(module).items() if is_handler(value)}
    if name:
        if name not in handlers:
            raise TargetError(
                f"{target}: {place} has no handler called {name!r}; {_what_there_is(handlers, module, name)}"
            )
        return [handlers[name]]
    if not handlers:
        raise TargetError(f"{target}: no handler in {place}; {_what_there_is(handlers, module, name)}")
    # A handler imported under two names is one handler.
    return list({id(handler): handler for handler in handlers.values()}.values())


def is_loading() -> bool:
    """Whether somebody looks for handlers in a module, which runs it: a script that serves itself must not do so now."""
    return _loading > 0


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob("*.py")) if path.parent.is_dir() else []
        if not path.parent.is_dir():
            there = f"there is no folder {path.parent}"
        else:
            there = (
                f"{path.parent.resolve()} has {_listing(near)}" if near else f"{path.parent.resolve()} has no .py file"
            )
        raise TargetError(f"no file {path}; {there}")
    # As `python file.py` would: its neighbours can be imported.
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # `app.py:one app.py:two` runs the file once.
    place = str(path.resolve())
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get("__file__") == place and vars(module).get(_LOADED):
            return module
    spec = importlib.util.spec_from_file_location(path.stem, place)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, or dataclasses and pickle inside it cannot find it.
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
        raise
    vars(module)[_LOADED] = True
    return module


def _from_name(name: str) -> ModuleType:
    # As `python -m` would.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    there = f"; there is a file {name}.py: write {name}.py" if Path(f"{name}.py").is_file() else ""
    missing = TargetError(f"no module {name!r} on {Path.cwd()} or sys.path{there}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise missing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module is there but misses one of its own imports: that is the user's traceback to see.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise missing from None


def _what_there_is(handlers: dict[str, Any], module: ModuleType, name: str) -> str:
    if handlers:
        near = difflib.get_close_matches(name, handlers, n=1)
        return f"it has {_listing(sorted(handlers))}" + (f"; did you mean {near[0]}?" if near else "")
    functions = sorted(
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    )
    return f"decorate one of {_listing(functions)} with @serve" if functions else "decorate a function with @serve"


def _listing(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
