from __future__ import annotations

from pathlib import Path

import pytest

from cdkit.core.errors import InputError
from cdkit.core.storage import write_json
from cdkit.evaluation.protocol import fill, find_entry, read_benchmark
from cdkit.evaluation.samples import find_tokens, without_tokens


@pytest.mark.parametrize(
    ("prompt", "tokens", "plain"),
    [
        ("a photo of a <new1> dog", [], "a photo of a dog"),
        ("a <new1> dog and a <new2> cat.", [], "a dog and a cat."),
        ("a photo of <my-cat>, sleeping", [], "a photo of, sleeping"),
        ("a photo of a sks dog", ["sks"], "a photo of a dog"),
        ("basks in the sun", ["sks"], "basks in the sun"),
        ("3 < 4 and 5 > 2", [], "3 < 4 and 5 > 2"),
        ("a dog", ["<new1>"], "a dog"),
    ],
)
def test_modifier_tokens_are_taken_out_and_nothing_else(prompt: str, tokens: list[str], plain: str) -> None:
    assert without_tokens(prompt, tokens) == plain


def test_tokens_are_found_once_each() -> None:
    assert find_tokens("a <new1> dog like sks and <new1>", ["sks"]) == ["sks", "<new1>"]
    assert find_tokens("a dog") == []


def _benchmark(folder: Path) -> Path:
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "dog.txt").write_text("photo of a {}.\n{} in a {2020} frame\n\nphoto of a {}.\n")
    (folder / "prompts" / "pet_sofa.txt").write_text("A {0} on a {1}.\n{1} without {0}\n")
    dog = {
        "instance_prompt": "photo of a <new1> dog",
        "class_prompt": "dog",
        "instance_data_dir": "./benchmark_dataset/pet_dog1",
        "class_data_dir": "./regularization/pet_dog",
        "prompt_filename": "prompts/dog.txt",
    }
    sofa = dog | {
        "instance_prompt": "photo of a <new2> sofa",
        "class_prompt": "sofa",
        "instance_data_dir": "./benchmark_dataset/sofa",
    }
    write_json(folder / "dataset.json", [dog])
    write_json(folder / "multi.json", [[dog, sofa, {"prompt_filename_compose": "prompts/pet_sofa.txt"}]])
    return folder


def test_customconcept101_single(tmp_path: Path) -> None:
    entry = find_entry(read_benchmark(_benchmark(tmp_path) / "dataset.json"), "pet_dog1")
    assert entry.concepts[0].photos == tmp_path / "benchmark_dataset" / "pet_dog1"
    assert entry.modifier_words() == ["<new1> dog"]
    with pytest.raises(InputError, match="asks for 2021 concepts"):
        entry.prompts(["<new1> dog"])
    (tmp_path / "prompts" / "dog.txt").write_text("photo of a {}.\n\nphoto of a {}.\n{} in a {frame}\n")
    assert entry.prompts(["<new1> dog"]) == ["photo of a <new1> dog.", "<new1> dog in a {frame}"]


def test_customconcept101_pairs(tmp_path: Path) -> None:
    entry = read_benchmark(_benchmark(tmp_path) / "multi.json")[0]
    assert entry.name == "pet_dog1+sofa"
    assert entry.prompts(entry.modifier_words()) == [
        "A <new1> dog on a <new2> sofa.",
        "<new2> sofa without <new1> dog",
    ]


def test_a_benchmark_says_what_is_wrong(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", [{"class_prompt": "dog", "instance_data_dir": "x"}])
    with pytest.raises(InputError, match="entry 1: 'instance_prompt'"):
        read_benchmark(tmp_path / "dataset.json")
    entries = read_benchmark(_benchmark(tmp_path / "good") / "dataset.json")
    with pytest.raises(InputError, match="did you mean 'pet_dog1'"):
        find_entry(entries, "pet_dog")
    entries[0].prompts_file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        entries[0].prompts(["dog"])


def test_fill_leaves_other_braces_alone() -> None:
    assert fill("a {} with {braces} and {", ["dog"]) == "a dog with {braces} and {"
