"""Cases 08 and 14: a concept's word counts where it stands as a word, and where the text encoder reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.apply import apply_deltas, extended_tokenizer
from cdkit.deltas.methods import METHODS
from cdkit.deltas.text_features import text_towers, token_ids
from cdkit.evaluation.samples import find_tokens, without_tokens
from cdkit.merging.constraints import PromptReader, concept_constraints, substitution
from cdkit.merging.stage import rename_tokens
from cdkit.sampling.drawing import notes_on_prompts, words_beyond
from cdkit.training.concepts import Concept, describe_concepts
from tests.cli.running import Ran, ran
from tests.merging.conftest import loaded
from tests.support import tiny_models
from tests.support.made_deltas import made_delta
from tests.support.tiny_pipeline import tiny_pipeline
from tests.training.conftest import make_material
from tests.training.running import Material, run

CASES = Path(__file__).parent
LONG = "an outdoor picture with many many details " * 15


def trained(photos: Path, out: Path, *further: str) -> Ran:
    return ran(["train", "--concept", f"star={photos}", "--steps", 1, "--out", out, "--format", "json", *further])


def written(folder: Path, *captions: str) -> Path:
    """Photos with these captions."""
    shutil.copytree(CASES / "14-word-beyond-context" / "longcap", folder)
    for path in folder.glob("*.txt"):
        path.unlink()
    for number, caption in enumerate(captions):
        (folder / f"{number}.txt").write_text(caption)
    return folder


def test_case_08_a_rare_word_inside_another_is_not_the_word(tmp_path: Path) -> None:
    done = trained(CASES / "08-rare-word-inside-a-word" / "sks", tmp_path / "out", "--method", "dreambooth")
    assert done.code == 0, done.err
    prompts = json.loads((tmp_path / "out" / "manifest.json").read_text())["details"]["prompts"]
    assert prompts == ["a sks star under two desks", "a sks star in the snow", "photo of a sks star"]


@pytest.mark.parametrize(
    ("word", "caption", "expected"),
    [
        ("sks", "DESKS and a Star", "DESKS and a sks Star"),
        ("sks", "asks for a star, sks2 or sks_3", "asks for a sks star, sks2 or sks_3"),
        ("sks", "a star that says “SKS”", "a star that says “SKS”"),
        ("sks", "sks's star", "sks's star"),
        ("sks", "a sks-star", "a sks-star"),
        # Tokenizers find a word in brackets wherever it stands.
        ("<new1>", "a<new1>star", "a<new1>star"),
        ("<new1>", "a <NEW1> star", "a <NEW1> star"),
        ("<new1>", "a <new10> star", "a <new10> <new1> star"),
        ("<new1>", "the costar of a star", "the costar of a <new1> star"),
    ],
)
def test_a_word_counts_where_it_stands_as_a_word(word: str, caption: str, expected: str) -> None:
    assert Concept("star", "star", "photos", word).caption_of(caption, "photo of a {}") == expected


def test_a_phrase_counts_whatever_its_blanks() -> None:
    concept = Concept("bear", "teddy bear", "photos", "sks")
    assert concept.caption_of("my Teddy\n bear", "photo of a {}") == "my sks Teddy\n bear"
    with pytest.raises(InputError, match="neither sks nor 'teddy bear'"):
        concept.caption_of("teddy bearings", "photo of a {}")


def test_evaluation_and_merging_read_words_alike() -> None:
    assert without_tokens("a SKS dog under desks", ["sks"]) == "a dog under desks"
    assert without_tokens("a<my-dog>dog asks", ["<my-dog>", "sks"]) == "a dog asks"
    assert find_tokens("a Sks dog", ["sks", "desk"]) == ["sks"]
    swap = substitution({"sks": "pll", "<a>": "<b>"})
    assert swap("desks, SKS and <A>dog but not <a>_1") == "desks, pll and <b>dog but not <a>_1"


def test_a_category_inside_another_word_is_no_place_of_a_merge(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "base")
    delta = made_delta(pipeline, tokens=(), category="cat")
    delta = type(delta)(**{**vars(delta), "prompts": ("photo of a caterpillar", "concat of a Cat")})
    found = concept_constraints(PromptReader.of(pipeline), [delta], end_of_text=False)
    assert [(place.prompt, place.word) for place in found.places] == [("concat of a Cat", "cat"), ("cat", "cat")]


def test_a_token_inside_another_word_does_not_begin_a_concept(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "base")
    delta = made_delta(pipeline, tokens=("qz",))
    delta = type(delta)(**{**vars(delta), "prompts": ("photo of a qz_2 qz cat",)})
    with apply_deltas(pipeline, [delta]):
        found = concept_constraints(PromptReader.of(pipeline), [delta], end_of_text=False)
    assert "qz cat" in {place.prompt for place in found.places}


def test_tokens_that_differ_in_case_alone_are_one(tmp_path: Path) -> None:
    tokenizer = tiny_models.clip_tokenizer()
    assert extended_tokenizer(tokenizer, ["<new1>"])("<NEW1>") == extended_tokenizer(tokenizer, ["<new1>"])("<new1>")
    for texts in (["<new1>", "<NEW1>"], ["<|ENDOFTEXT|>"]):
        with pytest.raises(ConfigError, match="in the vocabulary already"):
            extended_tokenizer(tokenizer, texts)
    folders, words = {"dog": "a", "cat": "b"}, {"dog": "<New1>=ktn"}
    options: dict[str, Any] = {"categories": {}, "regularization": {}, "picks": None, "no_token": False}
    found = describe_concepts(METHODS["custom-diffusion"], folders, words=words, **options)
    assert [concept.word for concept in found] == ["<New1>", "<new3>"]
    with pytest.raises(ConfigError, match="Two concepts"):
        describe_concepts(METHODS["custom-diffusion"], folders, words={**words, "cat": "<nEW1>=ktn"}, **options)
    pipeline = tiny_pipeline(tmp_path / "base")
    deltas = [made_delta(pipeline, seed=seed, tokens=(text,)) for seed, text in enumerate(("<new1>", "<NEW1>"))]
    assert [each.delta.tokens[0].text for each in rename_tokens(deltas)] == ["<new1>", "<new2>"]
    with pytest.raises(ConfigError, match="Two deltas bring"), apply_deltas(pipeline, deltas):
        pass


def test_case_14_a_word_beyond_the_context_is_an_error_that_names_the_photo(tmp_path: Path) -> None:
    done = trained(CASES / "14-word-beyond-context" / "longcap", tmp_path / "out")
    assert done.code == 3
    message = done.data["error"]["message"]
    assert f"{Path('longcap') / '0.png'} has <new1> behind the 77 tokens" in message
    assert "<new1> star" in done.data["error"]["hint"]
    assert not (tmp_path / "out" / "delta.safetensors").exists()


@pytest.mark.parametrize(
    ("captions", "further"),
    [
        (["a {} star", f"{LONG} of a {{}}"], []),
        (["a star", f"{LONG} of a star"], []),
        (["a star", f"{LONG} of a <NEW1> star"], []),
        ([f"{LONG} of a sks star"], ["--method", "dreambooth"]),
        # Inside another word at the start, as a word only at the end.
        ([f"desks {LONG} and a star"], ["--method", "dreambooth"]),
        # 75 tokens with the word, which is the last that is read: two more come before it when it is shown larger.
        (["a " * 74 + "<new1> star"], ["--augmentation"]),
    ],
)
def test_every_caption_is_read_to_its_word(tmp_path: Path, captions: list[str], further: list[str]) -> None:
    photos = written(tmp_path / "photos", *captions)
    done = trained(photos, tmp_path / "out", "--dry-run", *further)
    assert done.code == 3, done.out
    assert f"photos/{len(captions) - 1}.png has" in done.data["error"]["message"]


def test_the_last_place_that_is_read_is_enough(tmp_path: Path) -> None:
    tokenizer = extended_tokenizer(tiny_models.clip_tokenizer(), ["<new1>"])
    number = tokenizer.convert_tokens_to_ids("<new1>")
    for words in range(70, 80):
        prompt = "a " * words + "<new1> star"
        read = tokenizer(prompt, truncation=True, max_length=77)["input_ids"]
        assert words_beyond(prompt, ["<new1>", "<new2>"], tokenizer) == ([] if number in read else ["<new1>"])
    photos = written(tmp_path / "photos", "a " * 74 + "<new1> star")
    assert trained(photos, tmp_path / "out", "--dry-run").code == 0


def test_a_template_that_reaches_beyond_the_context_is_named(tmp_path: Path) -> None:
    done = trained(written(tmp_path / "photos"), tmp_path / "out", "--dry-run", "--template", f"{LONG} of a {{}}")
    assert done.code == 2
    assert "--template" in done.data["error"]["hint"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material") / "root")


def test_a_tokenizer_that_does_not_know_the_context_is_no_way_around(material: Material, out: Path) -> None:
    settings = material.root / "base" / "tokenizer" / "tokenizer_config.json"
    facts = json.loads(settings.read_text())
    assert facts.pop("model_max_length") == 77
    settings.write_text(json.dumps(facts))
    (material.root / "cat" / "0.txt").write_text("photo of a dog " * 30 + "and a cat")
    with pytest.raises(InputError, match=r"0\.png has <new1> behind the 77 tokens"):
        run(material.config(), out)


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_are_named_whose_word_is_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: int
) -> None:
    tiny_pipeline(tmp_path / "base")
    pipeline = loaded(tmp_path / "base")
    delta = made_delta(pipeline, rows=rows)
    prompts = [
        "photo of a <new1> cat",
        "photo of a <NEW1> cat",
        "dog " * 80 + "<new1> cat",
        "<new1> cat " + "dog " * 80,
        # With three rows the last of them is cut off.
        "dog " * 74 + "<new1> cat",
        "<new2> cat",
    ]
    with apply_deltas(pipeline, [delta]):
        notes = notes_on_prompts(prompts, ["<new1>"], pipeline)
        read = token_ids(text_towers(pipeline), [pipeline.maybe_convert_prompt(prompts[4], pipeline.tokenizer)])[0]
        last = pipeline.tokenizer.convert_tokens_to_ids("<new1>" if rows == 1 else "<new1>_2")
        assert bool(torch.isin(torch.tensor(last), read)) == (rows == 1)
    behind = [note for note in notes if note.startswith("<new1> stands behind the 77 tokens")]
    assert len(behind) == (1 if rows == 1 else 2)
    assert all(note.endswith("dog dog dog dog dog dog dog dog dog dog dog dog dog dog dog …") for note in behind)
    assert [note for note in notes if "<new2>" in note] == [
        "No delta brings the word <new2>: the prompt is read without it. Give --delta."
    ]
    assert len([note for note in notes if "its end is not seen" in note]) == (2 if rows == 1 else 1)
    assert len(notes) == 4
    assert "Token indices" not in capfd.readouterr().err
