"""From import to search, captions are embedded as CLIP reads them, and stay written as they were."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdkit.cli.app import execute_command
from cdkit.core.protocols import SilentProgress
from cdkit.core.shards import read_parts
from cdkit.core.storage import read_json, write_json
from cdkit.core.text import caption_id, clean_caption
from cdkit.encoders.image_towers import load_image_encoder
from cdkit.pictures.picture import FileContent, Picture
from cdkit.retrieval.candidates import CandidateSettings, farthest_first
from cdkit.retrieval.images import local_candidates
from cdkit.retrieval.picture_checks import PictureChecks, PictureRules
from tests.encoders.conftest import UNCLEAN
from tests.support import tiny_models
from tests.support.photo_pool import picture

# Two spellings of one caption, and a text that a second cleaning would change further.
SPELLINGS = ("Jack&#39;s red star", "JACK\u2019S   red\u00a0star")
AGAIN = "a <b>red</b> star &amp;amp;amp;quot;at night&amp;amp;amp;quot;"
CAPTIONS = (*SPELLINGS, *UNCLEAN[1:], AGAIN, "a red star", "a photo of a dog on the beach")


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.open_clip_folder(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.clip_folder(tmp_path_factory.mktemp("clip"))


@torch.inference_mode()
def by_open_clip(folder: Path, captions: list[str]) -> np.ndarray:
    """open_clip's own embeddings of captions as written: its tokenizer, its encode_text."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1).numpy()


@torch.inference_mode()
def by_transformers(folder: Path, captions: list[str]) -> np.ndarray:
    """The transformers library's own embeddings of captions as import cleans them."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cleaned = [clean_caption(caption) for caption in captions]
    tokens = tokenizer(cleaned, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1).numpy()


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    assert execute_command([*map(str, words), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def built(folder: Path, encoder: str) -> Path:
    pq.write_table(pa.table({"caption": list(CAPTIONS)}), folder / "pool.parquet")
    out = folder / "index"
    words = ["index", "build", "--captions", str(folder / "pool.parquet"), "--encoder", encoder, "--out", str(out)]
    assert execute_command([*words, "--keep-embeddings", "--format", "quiet"]) == 0
    return out


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_from_import_to_search_equals_the_library(
    open_clip_model: Path, clip_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    reference, folder = {
        "open_clip": (by_open_clip, open_clip_model),
        "transformers": (by_transformers, clip_model),
    }[library]
    index = built(tmp_path, f"{library}:{folder}")
    rows = [row for table in read_parts(index / "captions") for row in table.to_pylist()]
    captions = {row["caption_id"]: row["caption"] for row in rows}
    # Two spellings are one caption, written as the first was.
    assert set(captions.values()) == {*CAPTIONS} - {SPELLINGS[1]}
    for table in read_parts(index / "embeddings"):
        texts = [captions[number] for number in table["caption_id"].to_pylist()]
        # Stored as fp16.
        assert np.abs(np.stack(table["embedding"].to_numpy()) - reference(folder, texts)).max() < 3e-4
    texts = list(captions.values())
    vectors = reference(folder, texts)
    for query in CAPTIONS:
        found = run(capsys, "index", "search", index, query, "--min-similarity", -1, "--limit", 100)["results"]
        expected = dict(zip(texts, (vectors @ reference(folder, [query])[0]).tolist(), strict=True))
        assert {row["caption"]: row["similarity"] for row in found} == pytest.approx(expected, abs=5e-6)
        assert found[0]["similarity"] == pytest.approx(1, abs=5e-6)
        assert found[0]["caption_id"] == str(caption_id(clean_caption(query)))


def test_a_caption_is_found_by_its_own_spelling_with_the_embedded_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = built(tmp_path, "embedded")
    for query in CAPTIONS:
        [best] = run(capsys, "index", "search", index, query, "--limit", 1)["results"]
        assert clean_caption(best["caption"]) == clean_caption(query)
        assert best["similarity"] == pytest.approx(1, abs=2e-6)


@pytest.fixture(scope="module")
def encoder() -> Any:
    from cdkit.encoders import load_text_encoder

    return load_text_encoder("embedded", device="cpu")


def test_captions_of_a_folder_are_compared_and_kept_as_written(tmp_path: Path, encoder: Any) -> None:
    texts = [AGAIN, *SPELLINGS, "a red star"]
    (tmp_path / "picture").write_bytes(b"")
    stored = [Picture(str(n), str(n), FileContent(tmp_path / "picture"), text) for n, text in enumerate(texts)]
    prompt = "a &quot;red&quot; star"
    settings = CandidateSettings(min_similarity=-1.0, per_caption=2)
    found, _ = local_candidates(stored, [prompt], encoder, settings)
    expected = dict(zip(texts, (encoder.encode(texts) @ encoder.encode([prompt])[0]).tolist(), strict=True))
    assert {each.caption for each in found.candidates} == {AGAIN, SPELLINGS[0], "a red star"}
    assert {each.caption: each.similarity for each in found.candidates} == pytest.approx(
        {text: value for text, value in expected.items() if text != SPELLINGS[1]}, abs=2e-6
    )
    # The second spelling is the first one's caption: a second picture of it.
    assert len(found.candidates) == 4
    spread, _ = local_candidates(stored, [prompt], encoder, CandidateSettings(-1.0, select="spread", per_caption=2))
    ranks = list(dict.fromkeys(each.caption for each in found.candidates))
    order = farthest_first(encoder.encode(ranks), 10, 0)
    assert list(dict.fromkeys(each.caption for each in spread.candidates)) == [ranks[place] for place in order]


def test_an_image_is_scored_against_its_caption_as_written(tmp_path: Path, encoder: Any) -> None:
    from PIL import Image

    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    picture.save(tmp_path / "picture.png")
    rules, images = PictureRules(image_text_min=0.0), load_image_encoder(encoder.spec)
    checks = PictureChecks(rules, encoder, images, SilentProgress())
    path = tmp_path / "picture.png"
    checks.prepare([(caption, path) for caption in (AGAIN, *SPELLINGS)])
    seen = images.encode_images([picture])[0]
    for caption in (AGAIN, *SPELLINGS):
        expected = float(seen @ encoder.encode([caption])[0])
        assert checks.similarity(caption, path) == pytest.approx(expected, abs=2e-6)
    assert len({checks.similarity(caption, path) for caption in SPELLINGS}) == 1


@pytest.fixture(scope="module")
def outdated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index as cdkit 0.1.0 left it: its manifest does not say how captions were read."""
    folder = built(tmp_path_factory.mktemp("outdated it's"), "embedded")
    manifest = read_json(folder / "manifest.json")
    del manifest["details"]["encoder"]["encoding"]
    write_json(folder / "manifest.json", manifest)
    return folder


def words_of(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    capsys.readouterr()
    assert execute_command([*map(str, words)]) == code
    # Lines are as wide as the console; the words are what counts.
    return " ".join(capsys.readouterr().err.split())


def test_an_outdated_index_is_searched_with_a_warning_and_the_command_that_renews_it(
    outdated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("search", outdated, "a red star", "a dog"), ("info", outdated)):
        said = words_of(capsys, 0, "index", *words)
        assert said.count("is outdated") == 1
        command = shlex.join(["cdkit", "index", "build", "--encoder", "embedded", "--out", str(outdated), "--force"])
        assert f"Renew it: {command} --captions …" in said
    answer = run(capsys, "index", "search", outdated, "a red star")
    assert answer["results"][0]["caption"] == "a red star"
    assert "outdated" in answer["notes"][0]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(picture(0))
    (tmp_path / "pictures" / "a.txt").write_text("a red star")
    retrieve = ("retrieve", outdated, "a red star", "--images", tmp_path / "pictures", "--count", 1)
    assert words_of(capsys, 0, *retrieve, "--out", tmp_path / "set").count("is outdated") == 1


def test_nothing_is_added_to_an_outdated_index(
    outdated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(outdated, folder)
    pq.write_table(pa.table({"caption": ["a green vase"]}), tmp_path / "more.parquet")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = words_of(capsys, 3, "index", "add", folder, "--captions", tmp_path / "more.parquet")
    assert "is outdated" in said
    assert "--force" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    manifest = read_json(folder / "manifest.json")
    manifest["details"]["encoder"]["encoding"] = 2
    write_json(folder / "manifest.json", manifest)
    assert run(capsys, "index", "add", folder, "--captions", tmp_path / "more.parquet")["captions"] == 1
    assert "outdated" not in words_of(capsys, 0, "index", "search", folder, "a green vase")


def test_the_build_that_made_an_outdated_index_renews_it_only_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built(tmp_path, "embedded")
    manifest = read_json(folder / "manifest.json")
    del manifest["details"]["encoder"]["encoding"]
    manifest |= {"version": 1, "fingerprint": "of 0.1.0", "steps": {}}
    write_json(folder / "manifest.json", manifest)
    build = ("index", "build", "--captions", tmp_path / "pool.parquet", "--out", folder, "--keep-embeddings")
    assert "stage version 1 →" in words_of(capsys, 7, *build)
    words_of(capsys, 0, *build, "--force")
    assert "outdated" not in words_of(capsys, 0, "index", "search", folder, "a red star")
