"""A table that is read when it is asked for, as Arrow or pandas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import MissingLibraryError
from cdkit.core.shards import read_shard

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of a result."""

    read: Callable[[], pa.Table]

    @classmethod
    def of_file(cls, path: Path) -> Table:
        """The table in a Parquet file."""
        return cls(lambda: read_shard(path).replace_schema_metadata(None))

    def __repr__(self) -> str:
        table = self.to_arrow()
        return f"<Table of {table.num_rows:,} rows: {', '.join(table.column_names)}>"

    def to_arrow(self) -> pa.Table:
        """The table; raises InputError when its file is damaged."""
        return self.read()

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame; raises MissingLibraryError where pandas is not installed."""
        try:
            import pandas  # noqa: F401 - Arrow imports it by itself, and says less when it is not there
        except ImportError as error:
            raise MissingLibraryError("A table as a data frame", library="pandas") from error
        return self.to_arrow().to_pandas()
