"""How a worker process finds the handler that it runs: by module, by file, as the main script, or pickled by value."""

from __future__ import annotations

import copyreg
import importlib
import importlib.util
import io
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

import msgspec

from tidegate.handler import Handler, handler_of, is_handler
from tidegate.options import HOOKS, Options
from tidegate.workers.pickling import by_value_pickler

__all__ = ["CannotLoad", "Reference", "reference_to"]

# As `tidegate.target` marks the modules that it makes of files.
LOADED = "__tidegate_loaded__"

MAIN = "__mp_main__"
"""What a main script is called in a worker, as multiprocessing has it: its `if __name__ == "__main__"` stays out."""

_FUNCTIONS = {*HOOKS, "cost", "group_by"}
_TUPLES = ("batch_dim", "forward_headers")


class CannotLoad(Exception):
    """A handler cannot be found, or not be sent; the text names the fix."""


class Reference(msgspec.Struct, frozen=True):
    """Where a handler is, as plain data.

    One of: `module` (imported by that name), `module` and `file` (the file, under that name), `main` (the main script:
    `file`, or `module` after `-m`), `pickled`. variable: the handler's name there. changes: arguments of `serve` that
    differ from what is written there. path, argv: as in the process that it comes from.
    """

    variable: str = ""
    module: str = ""
    file: str = ""
    main: bool = False
    pickled: bytes = b""
    changes: dict[str, Any] = {}
    path: list[str] = []
    argv: list[str] = []

    @property
    def by_value(self) -> bool:
        """Whether the other side has classes and functions of `__main__` only as copies, and takes values with theirs."""
        return bool(self.pickled)

    def load(self) -> Handler[..., Any]:
        """Find the handler in a process of its own, where this changes sys.path and sys.argv; CannotLoad if it is gone.

        What the user's module raises passes through.
        """
        sys.path[:] = self.path
        sys.argv[:] = self.argv
        if self.pickled:
            handler = _unpickled(self.pickled)
        else:
            module = self._module()
            value = vars(module).get(self.variable)
            if not is_handler(value):
                raise CannotLoad(
                    f"{self.file or self.module} has no handler called {self.variable!r} when a worker imports it: "
                    "define it at the top of the module, whatever the module's __name__ is"
                )
            handler = handler_of(value)
        changes = {name: tuple(v) if name in _TUPLES and isinstance(v, list) else v for name, v in self.changes.items()}
        return handler.override(**changes) if changes else handler

    def _module(self) -> ModuleType:
        if self.main:
            return _main_from_file(self.file) if self.file else _main_from_name(self.module)
        if self.file:
            return _from_file(self.module, self.file)
        return importlib.import_module(self.module)


def reference_to(handler: Handler[..., Any], changes: Mapping[str, Any] | None = None) -> Reference:
    """How another process of this machine finds the handler; CannotLoad if it cannot.

    changes: arguments of `serve` to change there; those in which the handler differs from its variable are found here.
    """
    place: dict[str, Any] = {"path": [entry or os.getcwd() for entry in sys.path], "argv": list(sys.argv)}
    for module, variable, value in _variables(handler):
        differing = _differences(handler, handler_of(value))
        where = _where(module)
        if where is not None and differing is not None:
            return Reference(variable, **where, changes={**differing, **(changes or {})}, **place)
    return Reference(pickled=_pickled(handler), changes=dict(changes or {}), **place)


# ---------------------------------------------------------------------- where it is


def _variables(handler: Handler[..., Any]) -> Iterator[tuple[str, str, Any]]:
    """Module, name and value of every variable that holds the handler, or one with its function.

    Its function's own module comes first, and the main script last, which a worker would have to run again.
    """
    home = getattr(handler.target, "__module__", "")
    names = [home, *(name for name in list(sys.modules) if name not in (home, MAIN, "__main__")), "__main__"]
    for name in dict.fromkeys(names):
        module = sys.modules.get(name)
        if not isinstance(module, ModuleType):
            continue
        alike = []
        for variable, value in list(vars(module).items()):
            # By its type: a proxy of somebody else's may raise anything if it is asked for its class.
            kind = type(value)
            if not (issubclass(kind, Handler) or (issubclass(kind, type) and is_handler(value))):
                continue
            if handler_of(value) is handler:
                yield name, variable, value
            elif handler_of(value).target is handler.target:
                alike.append((name, variable, value))
        yield from alike


def _differences(handler: Handler[..., Any], other: Handler[..., Any]) -> dict[str, Any] | None:
    """The arguments in which one handler differs from another of its function; None if not all are plain data."""
    differing = {}
    for field in fields(Options) if handler is not other else ():
        value, before = getattr(handler.options, field.name), getattr(other.options, field.name)
        if value is before or (_is_plain(value) and _is_plain(before) and value == before):
            continue
        if field.name in _FUNCTIONS or field.name == "name" or not _is_plain(value):
            return None
        differing[field.name] = value
    return differing


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _where(name: str) -> dict[str, Any] | None:
    """How another process gets at this module; None if it cannot."""
    module = sys.modules[name]
    if module is sys.modules.get("__main__"):
        return _where_main(module)
    file = _file(module)
    if file and vars(module).get(LOADED):
        return {"module": name, "file": file}
    if _importable(name, module):
        return {"module": name}
    return {"module": name, "file": file} if file else None


def _where_main(main: ModuleType) -> dict[str, Any] | None:
    # A notebook or a prompt has no file, or one that does not hold what was typed.
    if hasattr(sys, "ps1") or sys.flags.interactive or hasattr(main, "get_ipython"):
        return None
    spec = getattr(main, "__spec__", None)
    file = _file(main)
    if spec is not None and spec.name not in ("__main__", MAIN):
        where: dict[str, Any] = {"module": spec.name, "main": True}
    elif file:
        where = {"file": file, "main": True}
    else:
        return None
    # What a worker pickles is of the module that is called so there.
    sys.modules.setdefault(MAIN, main)
    return where


def _file(module: ModuleType) -> str:
    """The module's source file, "" if it has none."""
    file = vars(module).get("__file__")
    usable = isinstance(file, str) and os.path.isfile(file) and not file.endswith((".pyc", ".so", ".pyd"))
    return os.path.abspath(file) if usable and file else ""


def _importable(name: str, module: ModuleType) -> bool:
    """Whether a fresh process with the same sys.path finds this very module by its name."""
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        package = sys.modules.get(parent)
        path = vars(package).get("__path__") if isinstance(package, ModuleType) else None
        if package is None or path is None or not _importable(parent, package):
            return False
    spec = _find_spec(name, path)
    if spec is None:
        return False
    file = vars(module).get("__file__")
    if file is None or spec.origin is None:  # a folder without an __init__.py
        folders = list(vars(module).get("__path__", ()))
        return file is None and list(spec.submodule_search_locations or ()) == folders
    return os.path.realpath(spec.origin) == os.path.realpath(str(file))


def _find_spec(name: str, path: Any) -> ModuleSpec | None:
    # importlib.util.find_spec answers from sys.modules, which another process has not.
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path, None)
        if spec is not None:
            return spec
    return None


# ---------------------------------------------------------------------- getting at it


def _from_file(name: str, file: str) -> ModuleType:
    known = sys.modules.get(name)
    if known is not None and vars(known).get("__file__") == file:
        return known
    module = _empty_module(name, file)
    # Registered before it runs, or dataclasses and pickle inside it cannot find it.
    sys.modules[name] = module
    _run(module)
    vars(module)[LOADED] = True
    return module


def _main_from_file(file: str) -> ModuleType:
    module = _empty_module(MAIN, file)
    _become_main(module)
    _run(module)
    # As for a script: who starts processes from here looks for a module by this name, and there is none.
    module.__spec__ = None
    return module


def _main_from_name(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise CannotLoad(f"no module {name!r}, which was run with -m; sys.path is {sys.path}")
    code = spec.loader.get_code(name)  # type: ignore[attr-defined]  # runpy asks for no less
    module = ModuleType(MAIN)
    vars(module).update(__file__=spec.origin, __spec__=spec, __loader__=spec.loader, __package__=spec.parent)
    _become_main(module)
    exec(code, vars(module))  # noqa: S102 - what -m does
    return module


def _empty_module(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, loader=SourceFileLoader(name, file))
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def _run(module: ModuleType) -> None:
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module)


_former_mains: list[ModuleType | None] = []


def _become_main(module: ModuleType) -> None:
    # Kept: a module that goes takes its variables with it.
    _former_mains.append(sys.modules.get("__main__"))
    sys.modules["__main__"] = sys.modules[MAIN] = module


# ---------------------------------------------------------------------- by value


def _pickled(handler: Handler[..., Any]) -> bytes:
    stream = io.BytesIO()
    pickler = by_value_pickler()(stream, protocol=5)
    pickler.own = {Handler: _reduce_handler}
    try:
        pickler.dump(handler)
    except Exception as error:
        raise CannotLoad(
            f"handler {handler.name!r} cannot be sent to a worker process: {type(error).__name__}: {error}; "
            "define it at the top of a module, make what it needs in setup=, or give worker='thread'"
        ) from error
    return stream.getvalue()


def _reduce_handler(handler: Handler[..., Any]) -> Any:
    # Made empty and filled after what it refers to: its function may refer to it.
    return copyreg.__newobj__, (type(handler),), {**vars(handler), "_codec": None, "_frozen": False}  # type: ignore[attr-defined]


def _unpickled(data: bytes) -> Handler[..., Any]:
    return handler_of(pickle.loads(data))
