"""A terminal of a given width, to see what a program leaves on the screen of whoever runs it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

ROWS = 40
CTRL_C = "\x03"
AGAIN_SECONDS = 15


class Screen(pyte.HistoryScreen):  # type: ignore[misc]
    """The screen, with what has been scrolled off it; exit_code: of the command, once it has ended."""

    exit_code: int | None = None

    @property
    def lines_shown(self) -> list[str]:
        """Every line from the first to the last that holds something."""
        gone = ["".join(row[column].data for column in range(self.columns)) for row in self.history.top]
        lines = [line.rstrip() for line in (*gone, *self.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def _interrupt(running: subprocess.Popen[bytes]) -> None:
    """Interrupt, and again: one that comes just before the program waits for a key is noticed with the next only."""
    while running.returncode is None:
        running.send_signal(signal.SIGINT)
        time.sleep(AGAIN_SECONDS)


def run_on_terminal(
    command: Sequence[str],
    columns: int,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    watch: Callable[[Screen], None] = lambda screen: None,
    typed: Sequence[tuple[str, str]] = (),
) -> tuple[str, Screen]:
    """Run a command on a terminal of its own; returns what it wrote and the screen it left.

    watch: called with the screen after everything that is written. typed: what is typed as soon as a text is written,
    one after another.
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
    written, waiting, seen = b"", list(typed), 0
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
        while waiting and (place := written.find(waiting[0][0].encode(), seen)) >= 0:
            seen = place + len(waiting[0][0].encode())
            answer = waiting.pop(0)[1]
            if answer == CTRL_C:  # as the terminal would, were it the program's own
                threading.Thread(target=_interrupt, args=(running,), daemon=True).start()
            else:
                os.write(controller, answer.encode())
    os.close(controller)
    screen.exit_code = running.wait()
    return written.decode(), screen
