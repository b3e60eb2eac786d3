from __future__ import annotations

from pathlib import Path

from cdkit.core.templates import markdown_of, template_environment, value_text


def test_numbers_for_people(tmp_path: Path) -> None:
    filters = template_environment(tmp_path).filters
    shown = [filters["seconds"](value) for value in (None, 3.21, 250, 7500)]
    assert shown == ["–", "3.2 s", "4 min 10 s", "2 h 5 min"]
    assert [filters["size"](value) for value in (None, 12, 12_300_000)] == ["–", "12 B", "12.3 MB"]
    assert value_text({"a": [1, True], "b": None}) == "a: 1, yes, b: –"


def test_pages_are_escaped_and_markdown_escapes_by_itself(tmp_path: Path) -> None:
    (tmp_path / "page.html.jinja").write_text("<p>{{ text }}</p>")
    (tmp_path / "card.md.jinja").write_text("{% if text %}\n# {{ text|md }}\n{% endif %}\n\n\n\nend\n\n")
    environment = template_environment(tmp_path)
    assert environment.get_template("page.html.jinja").render(text="<b>") == "<p>&lt;b&gt;</p>"
    card = markdown_of(environment.get_template("card.md.jinja").render(text="a*b"))
    assert card == "# a\\*b\n\nend\n"
