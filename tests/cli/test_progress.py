"""What progress leaves on a screen: bars while work goes on, and then lines, each once and on its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import Screen, run_on_terminal

BAR = "━"
PROGRAM = """
import sys, time
from cdkit.cli import progress as terminal
terminal.QUIET_SECONDS, terminal.LINE_SECONDS = 0.05, 0.1
output = terminal.Output(sys.argv[1])
shown = terminal.TerminalProgress(output)

def work(task, steps, note=""):
    for step in range(steps):
        time.sleep(0.02)
        task.advance(1)
        if note and step % 10 == 9:
            shown.note(f"{note} {step + 1}: " + "a long line that is wider than a narrow terminal is " * 2)

with shown.task("training", 40, unit="steps") as task:
    work(task, 40, "step")
with shown.task("embedding all of the captions of a pool with a very long name indeed", 20, unit="captions") as task:
    work(task, 10)
    with shown.task("fetch", None, unit="URL") as inner:
        work(inner, 20, "wave")
    work(task, 10)
try:
    with shown.task("drawing", 20, unit="images") as task:
        work(task, 10)
        print("a library writes to stderr", file=sys.stderr)
        work(task, 3)
        raise ValueError
except ValueError:
    output.hint("the end")
"""
COMMAND = [sys.executable, "-c", PROGRAM]


class Watch:
    """Looks at every state of the screen."""

    def __init__(self) -> None:
        self.most_bars = 0
        self.labels: set[str] = set()

    def __call__(self, screen: Screen) -> None:
        bars = [line for line in screen.lines_shown if BAR in line]
        self.most_bars = max(self.most_bars, len(bars))
        for line in bars:
            assert not re.search("step|wave|stderr", line.partition(BAR)[0]), line
            self.labels.add(line.partition(BAR)[0].strip())


@pytest.mark.parametrize("columns", [60, 80, 110])
def test_bars_leave_nothing_behind(columns: int) -> None:
    watch = Watch()
    _, screen = run_on_terminal([*COMMAND, "human"], columns, watch=watch)
    lines = screen.lines_shown
    assert watch.most_bars == 2
    assert not any(BAR in line for line in lines)
    text = " ".join(" ".join(lines).split())
    said = [
        *("step 10: a long", "step 20: a long", "step 30: a long", "step 40: a long", "training: 40 steps in"),
        *("wave 10: a long", "wave 20: a long", "fetch: 20 URL in"),
        "embedding all of the captions of a pool with a very long name indeed: 20 captions in",
        *("a library writes to stderr", "drawing: 13 images in", "→ the end"),
    ]
    assert [text.count(words) for words in said] == [1] * len(said)
    assert sorted(said, key=text.index) == said
    # Long notes are broken between words.
    assert not any(line.endswith(("narro", "termina", "wide")) for line in lines)
    assert (screen.cursor.x, lines[-1]) == (0, "→ the end")


def test_long_labels_are_shortened_and_figures_are_not() -> None:
    seen: list[str] = []

    def watch(screen: Screen) -> None:
        seen.extend(line for line in screen.lines_shown if line.startswith("embedding") and BAR in line)

    run_on_terminal([*COMMAND, "human"], 60, watch=watch)
    assert seen
    assert all(len(line) <= 60 and line.startswith("embedding all of t") and "…" in line[:21] for line in seen)
    assert any(re.search(r"\d+% [\d.]+ captions/s \d\d:\d\d$", line) for line in seen), seen[-1]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "dumb"}])
def test_terminals_that_ask_for_less(environment: dict[str, str]) -> None:
    written, screen = run_on_terminal([*COMMAND, "human"], 80, environment=environment)
    assert not re.search(r"\x1b\[[0-9;]*?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m", written)
    if "TERM" in environment:
        assert "\x1b" not in written
        assert "\r" not in written.replace("\r\n", "\n")
        assert any(
            re.match(r"training: \d+ of 40 steps, [\d.]+ steps/s, [\d.]+ s left$", line) for line in screen.lines_shown
        )
    assert not any(BAR in line for line in screen.lines_shown)


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "xterm-256color", "COLUMNS": "40"}])
def test_a_pipe_gets_lines(environment: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    done = subprocess.run(
        [*COMMAND, "human"], capture_output=True, text=True, check=True, env={**inherited, **environment}
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr) if "FORCE_COLOR" in environment else done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", plain)
    assert BAR not in plain
    lines = plain.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 4
    assert any(re.match(r"training: \d+ of 40 steps, ", line) for line in lines)
    assert done.stdout == ""


RUN = """
import sys, time
from cdkit.cli import progress as terminal
terminal.QUIET_SECONDS, terminal.LINE_SECONDS = 0.05, 0.1
shown = terminal.TerminalProgress(terminal.Output("human"))
shown.part_of("[4/18] star-tuned", "at least 2 min 5 s left")
with shown.task("training", 40, unit="steps") as task:
    for step in range(40):
        time.sleep(0.02)
        task.advance(1)
        if step == 20:
            shown.part_of("[4/18] star-tuned", "about 1 min 3 s left")
"""


@pytest.mark.parametrize("columns", [60, 200])
def test_a_part_of_a_run_says_which_and_what_is_left_of_all(columns: int) -> None:
    seen: set[str] = set()

    def watch(screen: Screen) -> None:
        lines = screen.lines_shown
        seen.update(line for line in lines if line.startswith("[4/18]"))
        if any(BAR in line for line in lines):
            assert sum(line.startswith("[4/18]") for line in lines) == 1

    _, screen = run_on_terminal([sys.executable, "-c", RUN], columns, watch=watch)
    assert seen == {
        "[4/18] star-tuned: at least 2 min 5 s left of the run",
        "[4/18] star-tuned: about 1 min 3 s left of the run",
    }
    assert [line.partition(" in ")[0] for line in screen.lines_shown] == ["training: 40 steps"]


def test_lines_say_what_is_left_of_a_run_once_all_of_it_is_known() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    ends = {line.partition("left;")[2] for line in done.stderr.splitlines()}
    assert ends == {"", " about 1 min 3 s left of the run"}


def test_no_time_left_is_made_up_of_the_first_moments() -> None:
    program = (
        PROGRAM.partition("with shown")[0]
        + """
with shown.task("embedding", 10_000, unit="captions") as task:
    work(task, 20)
    task.advance(1000)
    work(task, 20)
"""
    )
    done = subprocess.run([sys.executable, "-c", program, "human"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if " of 10,000" in line]
    early = [line for line in lines if int(line.split()[1].replace(",", "")) < 100]
    assert early
    assert not any("left" in line for line in early)
    assert any("left" in line for line in lines)


def test_quiet_is_quiet_on_a_terminal_too() -> None:
    written, _ = run_on_terminal([*COMMAND, "quiet"], 80)
    assert written.replace("\r\n", "\n") == "a library writes to stderr\n"


@pytest.mark.timeout(300)
def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    program = "from cdkit.cli import app, progress; progress.QUIET_SECONDS = 0.1; app.main()"
    words = ["train", "--concept", "star=embedded:striped-star", "--steps", "20", "--batch-size", "1"]
    watch = Watch()
    _, screen = run_on_terminal(
        [sys.executable, "-c", program, *words, "--out", str(tmp_path / "tuned")], 60, watch=watch
    )
    text = "\n".join(screen.lines_shown)
    assert "training" in watch.labels
    assert BAR not in text
    assert re.findall(r"^step (\d+) of 20: loss", text, re.MULTILINE) == [str(n) for n in range(2, 20, 2)]
    assert len(re.findall(r"^training: 20 steps in ", text, re.MULTILINE)) == 1
