"""`--help` in narrow terminals: plain text, and examples broken so that they can still be pasted."""

from __future__ import annotations

import re
import shutil
from typing import Any

from typer.core import TyperCommand

# In fewer columns rich's table would cut the names of options off.
COLUMNS_FOR_TABLES = 110
_SHELL_WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


class NarrowHelpCommand(TyperCommand):
    """A command whose help is rich's table only where that fits."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        mode = self.rich_markup_mode
        if shutil.get_terminal_size().columns < COLUMNS_FOR_TABLES:
            self.rich_markup_mode = None
        try:
            super().format_help(ctx, formatter)
        finally:
            self.rich_markup_mode = mode
        # Help texts escape their brackets for rich.
        formatter.buffer[:] = [text.replace("\\[", "[") for text in formatter.buffer]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, in plain help."""
        heading, *examples = (self.epilog or "").split("\n\n")
        parts = [f"  {heading}"]
        parts += ["\n".join(f"  {line}" for line in broken(example, formatter.width - 4)) for example in examples]
        formatter.write("\n" + "\n\n".join(parts) + "\n")


def broken(command: str, width: int) -> list[str]:
    """A shell command in lines of at most `width` where its words allow it; quoted words stay whole."""
    lines: list[str] = []
    for word in _SHELL_WORD.findall(command):
        # Two columns are for what continues the line.
        if lines and len(lines[-1]) + 1 + len(word) <= width - 2:
            lines[-1] += f" {word}"
        elif lines:
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines.append(word)
    return lines
