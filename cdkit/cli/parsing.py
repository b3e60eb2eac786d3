"""How commands take their arguments and show their help: several values for an option; narrow terminals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import command_line

# In fewer columns rich's table would cut the names of options off.
COLUMNS_FOR_TABLES = 110
TEXTS = ("prompts",)  # positional arguments that are never paths, beside options that take some
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


class ManyValuesCommand(NarrowHelpCommand):
    """Lets a repeatable option take several values at once, as shells expand globs: `--captions a.csv b.csv`.

    Only where they can be nothing else: behind all positional arguments that the command takes. A command that takes
    any number of those, such as merge, has one value per option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_spread(args, self.params)))


def _spread(arguments: Sequence[str], parameters: Sequence[Any]) -> Iterator[str]:
    options = {name: option for option in parameters for name in (*option.opts, *option.secondary_opts)}
    positional = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    fixed = sum(parameter.nargs for parameter in positional if parameter.nargs > 0)
    open_ended = next((parameter for parameter in positional if parameter.nargs < 0), None)
    current, wants_value, taken = "", False, 0
    for place, argument in enumerate(arguments):
        if wants_value:
            wants_value = False
        elif argument == "--":
            yield from arguments[place:]
            return
        elif argument.startswith("-") and argument != "-":
            name, joined, _ = argument.partition("=")
            option = options.get(name)
            wants_value = option is not None and not joined and not getattr(option, "is_flag", False)
            current = name if getattr(option, "multiple", False) else ""
        elif current and taken >= fixed:
            if open_ended is None:
                yield current
            elif open_ended.name in TEXTS and Path(argument).exists():
                raise ConfigError(
                    f"{argument!r} would be one of {open_ended.name.upper()}: here each option takes one value.",
                    hint=f"Repeat the option: {command_line(current, argument)}",
                )
        else:
            taken += 1
        yield argument
