"""What is asked, in which order, and what is taken where nobody is there to be asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.drafting.graphics_card import GIB, fit_of, parse_fit
from cdkit.drafting.interview import Given, Interview, Question
from tests.drafting.test_photos import write_photo
from tests.support.progress import Notes


class Person:
    """Answers questions in turn; what is refused is noted, and the next answer tried."""

    def __init__(self, *answers: str) -> None:
        self.waiting = list(answers)
        self.asked: list[str] = []
        self.refused: list[str] = []

    def __call__(self, question: Question) -> Any:
        self.asked.append(question.option)
        while True:
            text = self.waiting.pop(0)
            try:
                return question.check(text or question.default)
            except CdkitError as error:
                self.refused.append(error.message)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with photos and nothing else, on a machine without models and without a card."""
    for number in range(4):
        write_photo(tmp_path / "Fotos von ihm" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("cdkit.drafting.interview.card_memory", lambda: None)


def test_all_is_asked_where_nothing_is_given() -> None:
    person = Person("embedded:striped-star", "", "", "Fotos von ihm", "dog", "face", "", "", "", "")
    notes = Notes()
    made = Interview(Given(), person, notes).answers()
    concept = ["--photos", "--word", "--shows"]
    assert person.asked == [*concept, *concept, "--photos", "--base", "--captions", "--out"]
    assert [(entry.word, entry.shows) for entry in made.concepts] == [("star", "thing"), ("dog", "face")]
    assert (made.base.spec, made.captions.kind, made.fit, made.keep) == ("embedded", "embedded", None, "distil")
    assert made.out == Path("star-dog.yaml")
    assert any("4 photos" in note for note in notes.notes)


def test_a_wrong_answer_is_said_and_asked_again() -> None:
    person = Person("nowhere", "embedded:stripy", "Fotos von ihm", "<x>", "dog", "faces", "thing", "", "embedded")
    person.waiting += ["gone.csv", "none", "maybe", "none", "dog 1.yaml"]
    made = Interview(Given(), person, Notes()).answers()
    assert len(person.refused) == 6
    assert person.asked == ["--photos", "--word", "--shows", "--photos", "--base", "--captions", "--keep", "--out"]
    assert (made.keep, made.captions.kind, made.out) == ("none", "none", Path("dog 1.yaml"))


def test_what_is_given_is_not_asked() -> None:
    person = Person("")
    given = Given(["Fotos von ihm"], ["dog"], ["thing"], "owner/model", ["none"], "none", "10 GB", "dog.yaml")
    made = Interview(given, person, Notes()).answers()
    assert person.asked == []
    assert (made.fit, made.base.spec, made.keep) == ("8GB", "owner/model", "none")


def test_a_card_is_asked_for_only_with_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(["Fotos von ihm"], ["dog"], ["thing"], "owner/model", ["none"], "none", "", "dog.yaml")
    person = Person("24")
    assert Interview(given, person, Notes()).answers().fit == "24GB"
    assert person.asked == ["--fit"]
    monkeypatch.setattr("cdkit.drafting.interview.card_memory", lambda: 16 * GIB)
    notes = Notes()
    assert Interview(given, None, notes).answers().fit == "16GB"
    assert any("graphics card has" in note for note in notes.notes)


def test_defaults_are_taken_where_nobody_is_asked() -> None:
    made = Interview(Given(["embedded:checkered-mug"]), None, Notes()).answers()
    assert [entry.word for entry in made.concepts] == ["mug"]
    assert (made.base.spec, made.captions.kind, made.fit, str(made.out)) == ("embedded", "embedded", None, "mug.yaml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(), ["--photos is missing", "--word is missing"]),
        (Given(["Fotos von ihm"]), ["--word is missing", "--base is missing"]),
        (Given(["embedded:striped-star", "Fotos von ihm"], ["star"]), ["--word is missing", "--base is missing"]),
        (Given(["Fotos von ihm"], ["a", "b"], base="embedded"), ["2 --word for 1 --photos"]),
        (Given(["embedded:striped-star"], [], ["face", "thing"]), ["2 --shows for 1 --photos"]),
        (
            Given(["gone"], ["<"], ["fase"], "x", ["gone.csv"], "all", "much"),
            ["does not exist", "no class word", "did you mean 'face'", "no base model", "gone.csv", "'all'", "'much'"],
        ),
    ],
)
def test_all_that_is_missing_or_wrong_is_said_at_once(given: Given, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Interview(given, None, Notes()).answers()
    assert all(words in caught.value.message for words in said)
    assert len(caught.value.problems) == len(said)


def test_one_wrong_input_keeps_its_own_kind() -> None:
    with pytest.raises(InputError, match="does not exist"):
        Interview(Given(["gone"], ["dog"], base="embedded"), None, Notes()).answers()


def test_photos_that_training_would_refuse_are_refused_now() -> None:
    Path("Fotos von ihm/cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"cut\.jpg"):
        Interview(Given(["Fotos von ihm"], ["dog"], base="embedded"), None, Notes()).answers()


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        *(("12GB", "12GB"), ("12 gb", "12GB"), ("10", "8GB"), ("11.9", "12GB"), ("48GB", "auto"), ("6", "auto")),
        *(("none", None), ("", None), ("CPU", None), ("auto", "auto")),
    ],
)
def test_sizes_of_cards(text: str, fit: str | None) -> None:
    assert parse_fit(text) == fit


def test_a_card_has_a_little_less_than_its_name_says() -> None:
    assert fit_of(25_250_000_000) == "24GB"  # 23.5 GiB, as drivers report an RTX 3090's
    assert fit_of(85_000_000_000) == "auto"


def test_a_card_is_looked_for_without_torch_where_there_can_be_none() -> None:
    code = (
        "import sys; from pathlib import Path; from cdkit.drafting import graphics_card as card;"
        "card._NODES = (); card.shutil.which = lambda name: None; card.sys.platform = 'linux';"
        "print(card.card_memory(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]
