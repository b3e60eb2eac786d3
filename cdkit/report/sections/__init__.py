"""The sections of a report: each reads what a run made and says it as text, tables and pictures."""
