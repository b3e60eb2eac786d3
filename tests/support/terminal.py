"""A terminal of a given width, to see what a program leaves on the screen of whoever runs it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

ROWS = 40


class Screen(pyte.HistoryScreen):  # type: ignore[misc]
    """The screen, with what has been scrolled off it."""

    @property
    def lines_shown(self) -> list[str]:
        """Every line from the first to the last that holds something."""
        gone = ["".join(row[column].data for column in range(self.columns)) for row in self.history.top]
        lines = [line.rstrip() for line in (*gone, *self.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def run_on_terminal(
    command: Sequence[str],
    columns: int,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    watch: Callable[[Screen], None] = lambda screen: None,
) -> tuple[str, Screen]:
    """Run a command on a terminal of its own; returns what it wrote and the screen it left.

    watch: called with the screen after everything that is written.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    running = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**inherited, "TERM": "xterm-256color", **(environment or {})},
        cwd=cwd,
    )
    os.close(terminal)
    screen = Screen(columns, ROWS, history=1000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    written = b""
    while True:
        try:
            block = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        written += block
        stream.feed(block)
        watch(screen)
    os.close(controller)
    running.wait()
    return written.decode(), screen
