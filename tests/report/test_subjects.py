"""What a run is about: its concepts by their words, and the title they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdkit.core.manifest import Manifest
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.subjects import Subject, run_subjects, run_title, subjects_of


def _run(*steps: tuple[str, str, dict[str, Any], dict[str, Any]]) -> RunFolder:
    """steps: name, stage, values, details."""
    folders = [
        StepFolder(name, stage, values, Path(name), "done", Manifest(stage, 1, "x", {}, {}, details=details))
        for name, stage, values, details in steps
    ]
    return RunFolder(Path("run"), "my-run", "", {}, tuple(folders))


def _train(
    name: str, word: str, photos: str, token: str = "<new1>"
) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    return name, "train", {"concepts": {word: photos}}, {"tokens": [{"text": token, "category": word}]}


def _title(*steps: tuple[str, str, dict[str, Any], dict[str, Any]]) -> str:
    run = _run(*steps)
    return run_title(run, run_subjects(run))


def test_the_title_names_the_concepts() -> None:
    star = _train("star", "star", "embedded:striped-star")
    assert _title(star) == "A striped star"
    heart = _train("heart", "heart", "embedded:checkered-heart", "<new2>")
    assert _title(star, heart) == "A striped star and a checkered heart"
    dog, cat = _train("dog", "dog", "photos/dog"), _train("cat", "cat", "photos/cat", "<cat>")
    assert _title(dog, cat) == "<new1> dog and <cat> cat"
    many = [_train(f"t{n}", f"thing{n}", f"photos/{n}", f"<new{n}>") for n in range(9)]
    assert _title(*many) == "<new0> thing0, <new1> thing1, <new2> thing2 and 6 more"


def test_the_title_of_other_runs() -> None:
    methods = [
        (name, "train", {"concepts": {"dog": "photos/dog"}, "method": name}, {})
        for name in ("dreambooth", "fine-tune-all")
    ]
    assert _title(*methods, ("table", "compare", {}, {})) == "2 methods compared: dog"
    found = ("set", "retrieve", {"prompts": ["a photo of a dog", "a dog"]}, {})
    assert _title(found) == "Images like “a photo of a dog”"
    assert _title(("index", "index", {}, {})) == "my-run"


def test_a_concept_keeps_the_names_that_a_merge_gave_its_token() -> None:
    renamed = [
        {"token": "<new1>", "was": "<new1>", "delta": "run/a"},
        {"token": "<new2>", "was": "<new1>", "delta": "run/b"},
    ]
    run = _run(
        _train("a", "dog", "photos/one"), _train("b", "dog", "photos/two"), ("m", "merge", {}, {"tokens": renamed})
    )
    one, two = run_subjects(run)
    assert (one.tokens, two.tokens) == (("<new1>",), ("<new1>", "<new2>"))
    assert two.is_in("a <new2> dog at night")
    assert not one.is_in("a <new2> dog at night")
    assert one.is_in("a dog at night"), "without a token the word is what tells"


@pytest.mark.parametrize(
    ("prompt", "tokens", "there"),
    [
        ("a photo of a sks star", ["sks"], True),
        ("a photo of a sks heart", ["sks"], False),
        ("a photo of a star", ["sks"], True),
        ("a photo of a starfish", ["sks"], False),
        ("two <new1> things", [], False),
    ],
)
def test_a_prompt_is_about_a_concept(prompt: str, tokens: list[str], there: bool) -> None:
    assert Subject("star", ("sks",), "photos").is_in(prompt, tokens) is there


def _tuned(concepts: dict[str, str], categories: dict[str, str], tokens: list[tuple[str, str]]) -> Any:
    values = {"concepts": concepts, "categories": categories}
    return "tuned", "train", values, {"tokens": [{"text": text, "category": word} for text, word in tokens]}


def test_a_concept_is_called_by_its_word_where_its_name_is_another() -> None:
    tuned = _tuned(
        {"golden-retriever": "photos"}, {"golden-retriever": "golden retriever"}, [("<new1>", "golden retriever")]
    )
    run = _run(tuned, ("scores", "evaluate", {"concepts": {"golden retriever": "photos"}}, {}))
    (dog,) = run_subjects(run)
    assert dog.phrase == "<new1> golden retriever"
    assert dog.is_in("a photo of a <new1> golden retriever at night")
    assert [subjects_of(step, run, [dog]) for step in run.steps] == [[dog], [dog]]


def test_concepts_of_one_word_keep_their_own_tokens_and_photos() -> None:
    both = {"dog": "photos/one", "dog-2": "photos/two"}
    run = _run(
        _tuned(both, dict.fromkeys(both, "dog"), [("<new1>", "dog"), ("<new2>", "dog")]),
        ("one", "evaluate", {"concepts": {"dog": "photos/one"}}, {}),
        ("two", "evaluate", {"concepts": {"dog": "photos/two"}}, {}),
        ("together", "evaluate", {"concepts": both}, {}),
    )
    one, two = run_subjects(run)
    assert [(each.phrase, each.photos) for each in (one, two)] == [
        ("<new1> dog", "photos/one"),
        ("<new2> dog", "photos/two"),
    ]
    assert [subjects_of(step, run, [one, two]) for step in run.steps] == [[one, two], [one], [two], [one, two]]
