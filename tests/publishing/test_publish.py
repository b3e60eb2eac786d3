"""What is published of sets, indexes and deltas, and read back from the hub; refusals, kills and a hub in trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from cdkit.core.shards import parts, write_shard
from cdkit.deltas.delta import load_delta, save_delta
from cdkit.embedded import load_pipeline
from cdkit.embedded.pool import DEFAULT_HOST, picture_bytes
from cdkit.encoders import load_text_encoder
from cdkit.inputs import resolve_inputs, with_local_copies
from cdkit.pictures.regularization_set import iterate_regularization_set
from cdkit.retrieval.decisions import Decision, Decisions
from cdkit.sampling.config import SampleConfig
from tests.cli.running import ran
from tests.support.fake_hub import TOKEN, FakeHub, FakeRepository
from tests.support.made_deltas import made_delta
from tests.support.made_sets import made_set, rated, scenes
from tests.support.small_index import grammar_captions, make_index
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture
def star_set(tmp_path: Path) -> Path:
    return rated(made_set(tmp_path / "mäde sets" / "stars"))


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deltas") / "tuned"
    folder.mkdir()
    save_delta(made_delta(load_pipeline(), category="star"), folder / "delta.safetensors")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = load_text_encoder("embedded", precision="fp32")
    folder = make_index(tmp_path_factory.mktemp("indexes") / "made", grammar_captions(60), encoder, shards=2)
    return rated(folder, "UNLIKELY", rows="image_rows")


def files_of(hub: FakeHub, name: str) -> dict[str, bytes]:
    return {path: content for path, content in hub.repositories[name].files.items() if path != ".gitattributes"}


def test_a_set_is_published_without_its_pictures(hub: FakeHub, star_set: Path) -> None:
    done = ran(["publish", star_set, "--repo", "me/stars", "--format", "json"])
    assert done.code == 0, done.err
    assert (done.data["kind"], done.data["rows"], done.data["new"]) == ("set", 12, True)
    files = files_of(hub, "datasets/me/stars")
    assert sorted(files) == ["README.md", "captions/part-00000.parquet", "cdkit.json"]
    table = pq.read_table(pa.BufferReader(files["captions/part-00000.parquet"]))
    assert "image" not in table.column_names
    assert {"caption", "url", "sha256", "phash"} <= set(table.column_names)
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: other\nlicense_name: see-each-row\n")
    assert "The pictures themselves are not here" in card
    training = ["train", "--concept", "star=embedded:striped-star", "--regularization", "star=hub:me/stars"]
    trained = ran([*training, "--out", star_set.parent / "tuned"])
    assert (trained.code, "published without its pictures" in trained.err) == (3, True), trained.err
    assert TOKEN not in done.out + done.err + card + json.dumps(hub.requests)


def test_publishing_the_same_again_changes_nothing(hub: FakeHub, star_set: Path) -> None:
    first = ran(["publish", star_set, "--repo", "me/stars", "--format", "json"]).data
    uploads = hub.uploads()
    again = ran(["publish", star_set, "--repo", "me/stars", "--format", "json"]).data
    assert (again["commit"], again["new"], hub.uploads()) == (first["commit"], False, uploads)


@pytest.mark.parametrize("licences", [["cc-by-nc"], [None], ["CC BY-ND 4.0"], ["all rights reserved"], ["?"]])
def test_pictures_stay_here_unless_every_licence_is_free(hub: FakeHub, star_set: Path, licences: list[object]) -> None:
    rated(star_set, licence=[*["CC BY 2.0", "cc0", "Public Domain"] * 3, "cc-by-sa-4.0", "cc0", *licences])
    done = ran(["publish", star_set, "--repo", "me/stars", "--with-images"])
    assert done.code == 2
    assert "1 of 12 pictures have no licence" in done.err
    assert not hub.repositories


def test_a_set_with_free_pictures_trains_from_the_hub(hub: FakeHub, star_set: Path, out: Path) -> None:
    rated(star_set, licence=["CC BY 2.0"] * 12)
    assert ran(["publish", star_set, "--repo", "me/stars", "--with-images"]).code == 0
    command = ["train", "--concept", "star=embedded:striped-star", "--regularization", "star=hub:me/stars"]
    trained = ran([*command, "--steps", 1, "--batch-size", 2, "--out", out])
    assert trained.code == 0, trained.err
    snapshot = next((Path(os.environ.get("HF_HUB_CACHE", out.parent / "hub-cache"))).glob("*/snapshots/*"))
    here, there = list(iterate_regularization_set(star_set)), list(iterate_regularization_set(snapshot))
    assert [(row.key, row.image, row.caption, row.url) for row in there] == [
        (row.key, row.image, row.caption, row.url) for row in here
    ]
    # What is on the hub now counts: the same commit is found done, another is another input.
    assert "up to date" in ran([*command, "--steps", 1, "--batch-size", 2, "--out", out]).err
    rated(star_set, licence=["cc0"] * 12)
    assert ran(["publish", star_set, "--repo", "me/stars", "--with-images"]).code == 0
    assert ran([*command, "--steps", 1, "--batch-size", 2, "--out", out]).code == 7
    # A later publication without pictures takes them away.
    assert ran(["publish", star_set, "--repo", "me/stars"]).code == 0
    assert not [name for name in files_of(hub, "datasets/me/stars") if name.startswith("images/")]


def test_unrated_unsafe_and_rejected_rows_stay_here(hub: FakeHub, star_set: Path) -> None:
    ratings: list[object] = ["unlikely"] * 8 + [None, "NSFW", "unsure", "UNLIKELY"]
    rated(star_set, nsfw=ratings, punsafe=[None] * 7 + [0.9] + [None] * 3 + [0.1])
    rows = pq.read_table(parts(star_set / "images")[0]).to_pylist()
    rejected = Decision(0, "reject", rows[0]["key"], rows[0]["sha256"], rows[0]["phash"], rows[0]["url"], "", "now")
    Decisions((rejected,)).write(star_set / "decisions.parquet")
    done = ran(["publish", star_set, "--repo", "me/stars", "--format", "json"])
    assert done.data["refused"] == {"rejected by hand": 1, "unrated": 1, "unsafe": 3}
    assert done.data["rows"] == 7
    card = files_of(hub, "datasets/me/stars")["README.md"].decode()
    assert "rejected by hand 1, unrated 1, unsafe 3" in card
    rated(star_set, None, punsafe=[None] * 12)
    refused = ran(["publish", star_set, "--repo", "me/other"])
    assert refused.code == 3
    assert "datasets/me/other" not in hub.repositories


def test_an_index_is_searched_from_the_hub(hub: FakeHub, index: Path, out: Path) -> None:
    dry = ran(["publish", index, "--repo", "me/captions", "--dry-run", "--format", "json"])
    assert dry.code == 0, dry.err
    assert not hub.requests, "a dry run asks nobody"
    done = ran(["publish", index, "--repo", "me/captions", "--private"])
    assert done.code == 0, done.err
    files = files_of(hub, "datasets/me/captions")
    assert sorted(files) == sorted(dry.data["files"])
    assert files["caption.index"] == (index / "caption.index").read_bytes()
    assert "host" not in json.loads(files["manifest.json"])["run"]
    assert hub.repositories["datasets/me/captions"].private
    query = "a small red dog near the grass at day"
    near = ["--min-similarity", 0.5, "--format", "json"]
    here = ran(["index", "search", index, query, *near]).data
    there = ran(["index", "search", "hub:me/captions", query, *near])
    assert there.code == 0, there.err
    assert there.data == here
    found = ran(["retrieve", "hub:me/captions", query, "--min-similarity", 0.5, "--images", "embedded", "--out", out])
    # Its addresses are no scenes of the embedded world: what matters here is that the index was read.
    assert found.code in (3, 5), found.err
    assert "hub:" not in found.err


def caption_ids(index: Path) -> list[int]:
    return [number for path in parts(index / "captions") for number in pq.read_table(path)["caption_id"].to_pylist()]


def with_urls(index: Path, folder: Path, urls: Mapping[int, str]) -> Path:
    """A copy of an index whose rows have the addresses of their captions' ids."""
    copytree(index, folder)
    for path in parts(folder / "image_rows"):
        table = pq.read_table(path)
        column = pa.array([urls.get(number) for number in table["caption_id"].to_pylist()], pa.string())
        place = table.column_names.index("url")
        write_shard(path, table.set_column(place, "url", column), fingerprint="made")
    return folder


def test_a_set_is_retrieved_from_an_index_on_the_hub(hub: FakeHub, index: Path, tmp_path: Path) -> None:
    scenes_shown = scenes("star", "ball", 4)
    urls = {number: scenes_shown[number % 4].url(DEFAULT_HOST) for number in caption_ids(index)}
    mine = with_urls(index, tmp_path / "mine", urls)
    assert ran(["publish", mine, "--repo", "me/captions"]).code == 0
    asked = ["a photo of a star", "--min-similarity", -1, "--count", 3, "--min-side", 16, "--format", "json"]
    sets = []
    for place, source in enumerate([mine, "hub:me/captions"]):
        done = ran(["retrieve", source, *asked, "--out", tmp_path / f"set {place}"])
        assert (done.code, done.data["accepted"]) == (0, 3), done.err
        sets.append([(row.url, row.image) for row in iterate_regularization_set(tmp_path / f"set {place}")])
    assert sets[0] == sets[1]


def test_files_of_this_machine_are_neither_published_nor_read_for_others(
    hub: FakeHub, index: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_bytes(1, 256, "png"))
    mine = with_urls(index, tmp_path / "mine", dict.fromkeys(caption_ids(index), secret.as_uri()))
    asked = ["a photo of a star", "--min-similarity", -1, "--count", 1, "--format", "json"]
    assert ran(["retrieve", mine, *asked, "--out", tmp_path / "here"]).data["accepted"] == 1
    refused = ran(["publish", mine, "--repo", "me/files"])
    assert (refused.code, "pictures of this machine" in refused.err) == (3, True)
    assert "datasets/me/files" not in hub.repositories
    files = {str(path.relative_to(mine)): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    hub.repositories["datasets/me/hostile"] = FakeRepository(commits=[files])
    there = ran(["retrieve", "hub:me/hostile", *asked, "--out", tmp_path / "there"])
    assert there.code != 0
    assert there.data.get("accepted", 0) == 0


def test_rows_that_nobody_rated_keep_an_index_here(hub: FakeHub, tmp_path: Path) -> None:
    encoder = load_text_encoder("embedded", precision="fp32")
    unrated = make_index(tmp_path / "unrated", grammar_captions(20), encoder, shards=1)
    refused = ran(["publish", unrated, "--repo", "me/captions"])
    assert refused.code == 3
    assert "unrated: 40" in refused.err
    assert "--keep-unrated" in refused.err


def test_what_was_removed_from_an_index_is_not_published(hub: FakeHub, index: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    captions = tmp_path / "captions.txt"
    captions.write_text(pq.read_table(parts(copy / "captions")[0])["caption"][0].as_py() + "\n")
    assert ran(["index", "remove", copy, "--captions-file", captions]).code == 0
    refused = ran(["publish", copy, "--repo", "me/captions"])
    assert refused.code == 3
    assert "index compact" in refused.err


def test_a_delta_is_drawn_with_and_merged_from_the_hub(hub: FakeHub, delta: Path, tmp_path: Path) -> None:
    samples, out = tmp_path / "sämples", tmp_path / "out"
    drawing = ["--prompt", "photo of a <new1> star", "--seeds", 1, "--steps", 1, "--device", "cpu"]
    assert ran(["sample", "--delta", delta, *drawing, "--out", samples]).code == 0
    done = ran(["publish", delta, "--repo", "me/star", "--licence", "apache-2.0", "--samples", samples])
    assert done.code == 0, done.err
    files = files_of(hub, "models/me/star")
    assert files["delta.safetensors"] == (delta / "delta.safetensors").read_bytes()
    card = files["README.md"].decode()
    head = card.split("---")[1]
    assert "license: apache-2.0" in head
    assert "instance_prompt: photo of a <new1> star" in head
    assert "pictures/sample-0.png" in files
    assert "--delta hub:me/star" in card
    drawn = ran(["sample", "--delta", "hub:me/star", *drawing, "--out", out])
    assert drawn.code == 0, drawn.err
    assert [path.read_bytes() for path in sorted((out / "images").iterdir())] == [
        path.read_bytes() for path in sorted((samples / "images").iterdir())
    ]
    inspected = ran(["delta", "inspect", "hub:me/star", "--format", "json"]).data
    assert inspected["prompts"] == ["photo of a <new1> star"]
    second = tmp_path / "second.safetensors"
    save_delta(made_delta(load_pipeline(), category="heart", tokens=["<new2>"], seed=1), second)
    captions = tmp_path / "captions.csv"
    captions.write_text("\n".join(["caption", *grammar_captions(60)]))
    merged = ran(["merge", "hub:me/star", second, "--captions", captions, "--out", tmp_path / "merged"])
    assert merged.code == 0, merged.err


@pytest.mark.parametrize(("base", "said"), [("/models/sd v1-5", " --base 'sd v1-5'"), ("embedded", "")])
def test_the_next_command_names_the_base_that_a_delta_goes_on(
    hub: FakeHub, tmp_path: Path, base: str, said: str
) -> None:
    path = tmp_path / "delta.safetensors"
    save_delta(replace(made_delta(load_pipeline()), base=base), path)
    done = ran(["publish", path, "--repo", "me/cat"])
    assert done.code == 0, done.err
    assert f"cdkit sample{said} --delta hub:me/cat" in done.err


@pytest.mark.parametrize(
    ("value", "command", "code"),
    [
        ("hub:me/nothing", ["sample", "--prompt", "a", "--delta"], 6),
        ("hub:me", ["sample", "--prompt", "a", "--delta"], 2),
        ("hub:../../x", ["sample", "--prompt", "a", "--delta"], 2),
        ("hub:me/photos", ["train", "--concept"], 2),
    ],
)
def test_what_the_hub_does_not_have(hub: FakeHub, out: Path, value: str, command: list[str], code: int) -> None:
    value = f"star={value}" if command[-1] == "--concept" else value
    done = ran([*command, value, "--out", out])
    assert done.code == code, done.err
    assert "Hint:" in done.err


@pytest.mark.parametrize(
    ("part", "status", "headers", "words"),
    [
        ("/api/repos/create", 401, {}, "hf auth login"),
        ("/api/repos/create", 403, {}, "may write to me"),
        ("/preupload/", 404, {}, "no such repository"),
        ("/commit/", 409, {"Retry_After": "120"}, "same time"),
        ("/commit/", 429, {"Retry_After": "3600"}, "in 3600 seconds"),
        ("/commit/", 500, {}, "in trouble"),
        ("PUT /lfs/", 403, {}, "may write to me"),
        ("/commit/", 0, {}, "broke"),
    ],
)
def test_a_hub_that_refuses(
    hub: FakeHub, delta: Path, part: str, status: int, headers: dict[str, str], words: str
) -> None:
    hub.refuse(part, status, 99, **headers)
    done = ran(["publish", delta, "--repo", "me/star", "--format", "json"])
    assert done.code == 6, done.err
    error = done.data["error"]
    assert error["code"] == "hub"
    assert words in f"{error['message']} {error['hint']}"
    assert TOKEN not in done.out + done.err
    hub.refusals.clear()
    assert ran(["publish", delta, "--repo", "me/star"]).code == 0
    assert files_of(hub, "models/me/star")["delta.safetensors"] == (delta / "delta.safetensors").read_bytes()


def test_what_xet_is_refused_is_told_too(hub: FakeHub, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.refuse("xet-write-token", 403, 99)
    done = ran(["publish", delta, "--repo", "me/star"])
    assert (done.code, "may write to me" in done.err, TOKEN in done.err) == (6, True, False), done.err


@pytest.mark.parametrize("token", ["hf_secret\x01secret", "hf_secret\u00e9secret", "hf_secret\udcffsecret"])
def test_a_token_that_is_none_is_not_repeated(
    hub: FakeHub, delta: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    done = ran(["publish", delta, "--repo", "me/star"])
    assert done.code == 6, done.err
    assert "hf auth login" in done.err
    assert "secret" not in done.out + done.err


def test_a_busy_hub_is_asked_again(hub: FakeHub, delta: Path) -> None:
    hub.refuse("/commit/", 429, 1, Retry_After="1")
    hub.refuse("PUT /lfs/", 0, 1)
    done = ran(["publish", delta, "--repo", "me/star"])
    assert done.code == 0, done.err
    assert "Trying again in 1 s" in done.err


def test_a_repository_of_something_else_is_left_alone(hub: FakeHub, delta: Path, star_set: Path, index: Path) -> None:
    assert ran(["publish", star_set, "--repo", "me/data"]).code == 0
    other = ran(["publish", index, "--repo", "me/data"])
    assert (other.code, "holds the kind set" in other.err) == (7, True)
    public = ran(["publish", star_set, "--repo", "me/data", "--private"])
    assert public.code == 7
    assert "is public" in public.err
    assert ran(["publish", delta, "--repo", "me/star"]).code == 0
    hub.repositories["models/me/star"].commits.append({"model.safetensors": b"somebody's"})
    assert ran(["publish", delta, "--repo", "me/star"]).code == 7


def test_killed_in_the_middle_it_ends_the_same(hub: FakeHub, index: Path, tmp_path: Path) -> None:
    environment = own_environment(hub, tmp_path)
    command = [sys.executable, "-m", "cdkit", "publish", str(index), "--repo", "me/captions"]
    largest = max(parts(index / "captions"), key=lambda path: path.stat().st_size)
    hub.hold(f"PUT /lfs/{_sha256(largest)}")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert hub.holding.wait(60), "no upload began"
    deadline = time.monotonic() + 30
    while len(hub.stored) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert files_of(hub, "datasets/me/captions") == {}, "nothing is seen before all is there"
    sent = set(hub.stored)
    hub.held = ""
    hub.go_on.set()
    hub.requests.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not [oid for oid in sent if f"PUT /lfs/{oid}" in hub.requests], "what had arrived is not sent again"
    files = files_of(hub, "datasets/me/captions")
    for folder in ("captions", "image_rows"):
        for path in parts(index / folder):
            assert files[f"{folder}/{path.name}"] == path.read_bytes()
    assert files["caption.index"] == (index / "caption.index").read_bytes()


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_base_model_on_the_hub_counts_by_its_commit(hub: FakeHub) -> None:
    repository = hub.repositories["models/me/tiny"] = FakeRepository()
    config = SampleConfig(base="hub:me/tiny", prompts=["a cat"])
    first = resolve_inputs(config)
    assert with_local_copies(config, first).base == "me/tiny"
    assert resolve_inputs(config) == first
    repository.commits.append({"model_index.json": b"{}"})
    assert resolve_inputs(config)["base"].fingerprint != first["base"].fingerprint


@pytest.mark.slow
def test_a_base_model_on_the_hub_draws_and_is_trained(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_pipeline(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories["models/me/tiny"] = FakeRepository(commits=[files])
    drawing = ["--prompt", "photo of a cat", "--seeds", "1", "--steps", "1", "--device", "cpu"]
    assert ran(["sample", "--base", folder, *drawing, "--out", tmp_path / "here"]).code == 0
    command = [sys.executable, "-m", "cdkit", "sample", "--base", "hub:me/tiny", *drawing]
    environment = own_environment(hub, tmp_path)
    there = subprocess.run(
        [*command, "--out", str(tmp_path / "there")], env=environment, capture_output=True, check=False
    )
    assert there.returncode == 0, there.stderr
    drawn = [next((tmp_path / name / "images").iterdir()).read_bytes() for name in ("here", "there")]
    assert drawn[0] == drawn[1]
    training = [
        "train",
        "--base",
        "hub:me/tiny",
        "--concept",
        "cat=embedded:striped-star",
        "--token",
        "cat=<new1>=cat",
    ]
    options = [
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--resolution",
        "32",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "tuned"),
    ]
    trained = subprocess.run(
        [sys.executable, "-m", "cdkit", *training, *options], env=environment, capture_output=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    assert load_delta(tmp_path / "tuned" / "delta.safetensors").base == "me/tiny"


def own_environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    """What a process of its own needs to know to talk to the hub."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return {**os.environ, **settings, "HF_HOME": str(folder / "home"), "TMPDIR": str(folder)}
