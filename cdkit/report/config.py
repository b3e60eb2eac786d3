"""Settings of the report stage."""

from __future__ import annotations

from cdkit.core.config import StageConfig, setting


class ReportConfig(StageConfig):
    """Which run to report, and what to write on it."""

    run_folder: str = setting(help="The folder of a run; a pipeline's own when left out.", input="run")
    title: str | None = setting(None, "The page's title [default: the concepts].")
    licence: str = setting("other", "Licence of the delta for the model card, as the hub names it.")
