"""Everything in its long form, and the counts of all of it as one table.

    python -m tests.faults [--counts FILE] [--only NAME …]      hours; --only: some of the files test_NAME.py

The short forms are left out: they have `some` in their names. Counts are added to FILE as each campaign ends, so
that a run that was interrupted can go on with what is left; the table is of all that FILE holds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.counts import VARIABLE, read_counts, table

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=Path, default=Path("fault-counts.jsonl"))
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args(arguments)
    files = [str(FOLDER / f"test_{name}.py") for name in options.only]
    chosen = ["-m", "slow or not slow", "-k", "not some", "-n0", "-q", "--durations=10"]
    environment = {**os.environ, VARIABLE: str(options.counts.absolute())}
    code = subprocess.run([sys.executable, "-m", "pytest", *chosen, *files], env=environment, check=False).returncode
    print(table(read_counts(options.counts)))
    return code


if __name__ == "__main__":
    sys.exit(main())
