"""Worker processes run the main script again up to its main guard: what to say when it has none."""

from __future__ import annotations

import ast
import multiprocessing
import sys
import threading
import tokenize
from types import FrameType

from cdkit.core.errors import ConfigError

_HINT = 'Put what runs stages under `if __name__ == "__main__":`, or use one worker (--workers 1, workers=1).'


def refuse_in_worker() -> None:
    """Raise ConfigError in a worker process that has only come here because it runs the script from its start."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError("A worker process has run the main script from its start.", hint=_HINT)


def require_main_guard() -> None:
    """Raise ConfigError when processes started now would run the main script again from its start.

    To be called before processes are spawned. What stands under any `if` of the script counts as guarded.
    """
    refuse_in_worker()
    main = sys.modules.get("__main__")
    path, module = getattr(main, "__file__", None), str(getattr(getattr(main, "__spec__", None), "name", ""))
    line = _line_of_main(main)
    # A console and `python -c` have no file, and `python -m package` is not run again.
    if path is None or line is None or module.endswith(".__main__"):
        return
    try:
        with tokenize.open(path) as file:
            statements = ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError):
        return
    under_way = [statement for statement in statements if statement.lineno <= line <= (statement.end_lineno or 0)]
    if under_way and not any(isinstance(statement, ast.If) for statement in under_way):
        raise ConfigError(
            f"{path} starts worker processes in line {line}, and each of them would run the script from its start.",
            hint=_HINT,
        )


def _line_of_main(main: object) -> int | None:
    """The line at which the main script is; None when it is not, or no more, under way."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    line = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is getattr(main, "__dict__", None):
            line = frame.f_lineno
        frame = frame.f_back
    return line
