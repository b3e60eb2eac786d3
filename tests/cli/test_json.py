"""Every command prints one JSON object and nothing else on stdout, in folders whose names hold spaces and umlauts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdkit.cli import app as application
from cdkit.embedded.concepts import write_concept
from cdkit.embedded.pool import write_pool
from tests.cli.running import Ran, command_words, ran

pytestmark = pytest.mark.timeout(1200)  # the fixture runs all of them, within the first test
PIPELINE = """
name: kurz
stages:
  picks: {run: tokens, index: Verzeichnis der Wörter, min_count: 1}
  page: {run: report}
"""
# One line per command, in an order in which each finds what it needs.
LINES = """
index import --captions Bildtexte --out eingelesen
index embed --captions Bildtexte --out eingebettet
index build --captions Bildtexte --out 'Verzeichnis der Wörter'
index plan --rows 1000 --dim 64
index info 'Verzeichnis der Wörter'
index search 'Verzeichnis der Wörter' 'a photo of a star' --limit 3
index add 'Verzeichnis der Wörter' --captions weitere.csv
index remove 'Verzeichnis der Wörter' --captions-file weg.txt
index compact 'Verzeichnis der Wörter'
tokens count --index 'Verzeichnis der Wörter' --out gezählt
tokens rare --counts gezählt --min-count 1 --out seltene
tokens explain star --counts gezählt
retrieve 'Verzeichnis der Wörter' 'a photo of a star' --images embedded --count 4 --out 'Bilder von Sternen'
dataset 'Bilder von Sternen' --to imagefolder --out 'für Trainer'
class-images 'photo of a star' --count 2 --steps 2 --out gemalte
train --concept star='Fotos für den Stern' --regularization star=gemalte --steps 2 --batch-size 2 --out 'Stern 1'
train --concept mug=embedded:checkered-mug --token mug='<new2>' --steps 1 --batch-size 1 --out 'Tasse 2'
merge 'Stern 1' 'Tasse 2' --index 'Verzeichnis der Wörter' --out 'beide'
sample --delta 'Stern 1' --prompt 'a <new1> star' 'a star' --seeds 2 --steps 2 --out 'Bilder nachher'
sample --prompt 'a <new1> star' --seeds 2 --steps 1 --out 'Bilder vorher'
preference page . --methods 'Bilder vorher' 'Bilder nachher' --out Vorlieben
preference score Urteile/ada.json
publish 'Bilder von Sternen' --repo ich/sterne --dry-run
evaluate --samples 'Bilder nachher' --concept star='Fotos für den Stern' --out 'Noten'
compare --single custom-diffusion=Noten --out Vergleich
delta inspect 'Stern 1'
delta compress 'Stern 1' --rank 2 --out klein
export 'Stern 1' --to kohya-lora --rank 4 --out 'für andere'
delta import 'für andere' --base embedded --out zurück
inspect weights --base embedded --tuned 'Stern 1'
inspect attention --prompt 'a star' --out Blicke
inspect benchmark dataset.json
init --yes --photos 'Fotos für den Stern' --word star --base embedded --captions none --out 'ein Stern.yaml'
pipeline list
pipeline show quickstart
pipeline validate kurz.yaml
pipeline copy quickstart 'meine Kopie.yaml'
pipeline schema
run kurz.yaml --out 'Läufe/erster'
report 'Läufe/erster' --out Seite
doctor
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ran]]:
    """What every line printed."""
    folder = tmp_path_factory.mktemp("Müller & Söhne's Ordner")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_pool(Path("Bildtexte"), rows=200)
        write_concept("striped-star", Path("Fotos für den Stern"))
        Path("weitere.csv").write_text("caption,url\nein schöner Stern,http://example.com/ä.jpg\n", encoding="utf-8")
        Path("weg.txt").write_text("ein schöner Stern\n", encoding="utf-8")
        Path("kurz.yaml").write_text(PIPELINE, encoding="utf-8")
        entry = {"instance_prompt": "photo of a <new1> dog", "class_prompt": "dog", "instance_data_dir": "x"}
        Path("dataset.json").write_text(json.dumps([entry | {"prompt_filename": "p.txt"}]))
        Path("Urteile").mkdir()
        pair = {"left": "vorher", "right": "nachher", "concept": "", "prompt": "ein Stern", "seed": 0, "check": None}
        key = {"study": "s", "methods": ["vorher", "nachher"], "questions": ["overall"], "pairs": {"pair-001": pair}}
        Path("Urteile/key.json").write_text(json.dumps(key))
        answers = {"study": "s", "rater": "Ada", "answers": {"pair-001": {"overall": "left"}}}
        Path("Urteile/ada.json").write_text(json.dumps({"format": "cdkit-preference-answers-1", **answers}))
        yield {line: ran(f"cdkit {line} --format json") for line in LINES.strip().splitlines()}
    finally:
        os.chdir(before)


@pytest.mark.parametrize("line", LINES.strip().splitlines())
def test_a_command_prints_one_object(lines: dict[str, Ran], line: str) -> None:
    found = lines[line]
    assert found.code in (0, 5), found.err
    assert isinstance(found.data, dict)
    assert "Traceback" not in found.err


# They print their object and go on: tests/serving reads it.
SERVICES = {("serve",), ("review",)}


def test_no_command_is_left_out() -> None:
    for words in set(command_words(application.app)) - SERVICES:
        assert any(line.startswith(" ".join(words)) for line in LINES.splitlines()), words
