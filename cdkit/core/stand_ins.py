"""Modules that are loaded when they are used: until then others that import them get stand-ins.

What a stand-in gives are classes. Calling one, or asking for what it has, loads the module; as long as that has not
happened, nothing is an instance of it. torch's compiler has a stand-in of its own, which takes down what is said to it
of functions, and stays until something is compiled.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
# Where torch keeps what the compiler's `disable` gave for a function.
KEPT = "__dynamo_disable"


@contextmanager
def stand_ins(names: Sequence[str]) -> Iterator[None]:
    """While it lasts, imports of these modules and of all below them find stand-ins, but of those that are loaded."""
    finder = _Stage([name for name in names if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _end()


def put_off_compiler() -> None:
    """Have torch's compiler loaded when something is compiled; torch itself is loaded, or will be."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _Compiler()
        sys.meta_path.insert(0, _CompilerParts())


def _end() -> None:
    """Have the next import of a module that has a stand-in find the module itself.

    Where the stand-in stands in the module above it, it stays, and gives what the module has.
    """
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            module.is_over = True
            del sys.modules[name]


class _Late(type):
    """In place of a class or function of a module that is not loaded."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> _Late:
        if bases:
            raise TypeError("a stand-in has no subclasses")
        return super().__new__(cls, name, bases, space)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls._is_loaded() and isinstance(instance, cls._real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or (cls._is_loaded() and issubclass(subclass, cls._real()))

    def _is_loaded(cls) -> bool:
        return not isinstance(sys.modules.get(cls.__module__), _StandIn | None)

    def _real(cls) -> Any:
        with _unstaged():
            return getattr(importlib.import_module(cls.__module__), cls.__name__)


@contextmanager
def _unstaged() -> Iterator[None]:
    """While stand-ins are given, have one module loaded all the same."""
    stages = [finder for finder in sys.meta_path if isinstance(finder, _Stage)]
    for stage in stages:
        sys.meta_path.remove(stage)
    _end()
    try:
        yield
    finally:
        sys.meta_path[:0] = stages


class _StandIn(ModuleType):
    """Gives classes that are the real module's when they are used; once its time is over, what the module has."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_over = False

    def __getattr__(self, name: str) -> Any:
        if self.is_over:
            return getattr(importlib.import_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Late(name, (), {"__module__": self.__name__})

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self.__name__)) if self.is_over else list(super().__dir__())


class _Stage(MetaPathFinder, Loader):
    """Gives a stand-in for each of these modules and for all below them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        late = any(name == one or name.startswith(f"{one}.") for one in self._names)
        return ModuleSpec(name, self, is_package=True) if late else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: there is nothing to run."""


class _Compiler(ModuleType):
    """What torch's compiler is as long as nothing is compiled; everything else of it loads it."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.__spec__ = ModuleSpec(COMPILER, None, is_package=True)
        self.__path__: list[str] = []
        self._said: list[tuple[str, Any]] = []

    def disable(self, function: Any = None, recursive: bool = True, **options: Any) -> Any:
        if options.get("wrapping", True):
            # A decorator: what it gives asks again when it is called.
            return importlib.import_module("torch._compile")._disable_dynamo(function, recursive)
        self._said.append(("disable", function))
        return function

    def allow_in_graph(self, function: Any) -> Any:
        self._said.append(("allow_in_graph", function))
        return function

    def assume_constant_result(self, function: Any) -> Any:
        self._said.append(("assume_constant_result", function))
        return function

    def graph_break(self, **options: Any) -> None:
        """Outside of what is compiled it does nothing."""

    @property
    def eval_frame(self) -> Any:
        return _Frames(f"{COMPILER}.eval_frame") if sys.modules.get(COMPILER) is self else self.load().eval_frame

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.load(), name)

    def load(self) -> Any:
        """The compiler itself, told all that was said."""
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        with _unstaged():
            real: Any = importlib.import_module(COMPILER)
        for name, function in self._said:
            if name != "disable":
                getattr(real, name)(function)
            elif KEPT in vars(function):
                # torch keeps what `disable` gave, and asks again. `del` would take the name for one of this class.
                delattr(function, KEPT)
        self._said.clear()
        return real


class _Frames(_StandIn):
    """Nothing is a compiled module as long as nothing is compiled."""

    def __getattr__(self, name: str) -> Any:
        if name == "OptimizedModule":
            return _Late(name, (), {"__module__": self.__name__})
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _CompilerParts(MetaPathFinder, Loader):
    """Loads the compiler when a part of it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        compiler = sys.modules.get(COMPILER)
        if not name.startswith(f"{COMPILER}.") or not isinstance(compiler, _Compiler):
            return None
        real = compiler.load()
        return ModuleSpec(name, self) if name in sys.modules else PathFinder.find_spec(name, real.__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the compiler ran it."""
