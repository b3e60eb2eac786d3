"""The page of a preference study, in a real browser, and its answers counted."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cdkit.core.manifest import Manifest
from cdkit.core.shards import write_shard
from cdkit.evaluation.preference import Key, read_key
from cdkit.report.preference_study import find_comparisons
from cdkit.report.run_folder import read_run
from tests.cli.running import Ran, ran
from tests.support.browser import Browser, chromium

METHODS = ("custom-diffusion", "dreambooth")
TOKENS = {"custom-diffusion": "<new1>", "dreambooth": "sks"}
PLACES = ("on the grass", "at night </script & <!-- x")
SEEDS = 2


def drawn(folder: Path, method: str, shade: int) -> None:
    """A sample step of one method: noise around a shade, texts in the files that give the method away."""
    import pyarrow as pa
    from PIL.PngImagePlugin import PngInfo

    token, noise = TOKENS[method], random.Random(method)
    rows = []
    (folder / "images").mkdir(parents=True)
    for number, place in enumerate(PLACES):
        for seed in range(SEEDS):
            name = f"images/{number:04d}-{seed}.png"
            pixels = bytes(min(255, shade + noise.randrange(40)) for _ in range(3 * 160 * 160))
            texts = PngInfo()
            texts.add_text("prompt", f"{method} {token}")
            Image.frombytes("RGB", (160, 160), pixels).save(folder / name, pnginfo=texts)
            prompt = f"a photo of a {token} star {place}"
            rows.append({"prompt": prompt, "seed": seed, "path": name, "delta": [f"tuned-{method}"]})
    write_shard(folder / "samples.parquet", pa.Table.from_pylist(rows), fingerprint="drawn")
    Manifest("sample", 2, method, {}, {}, details={"tokens": [token] if "<" in token else []}).write(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as paper-table leaves it: samples of two methods, their scores by concept, and a table of both."""
    folder = tmp_path_factory.mktemp("rüns") / "paper table"
    stages: dict[str, object] = {}
    for number, method in enumerate(METHODS):
        drawn(folder / f"images-{method}-1", method, 60 + 120 * number)
        stages[f"images-{method}-1"] = {"run": "sample", "deltas": [f"tuned-{method}-1"]}
        concepts = {"star": "embedded:striped-star"}
        scores = {"run": "evaluate", "samples": f"images-{method}-1", "concepts": concepts, "tokens": [TOKENS[method]]}
        stages[f"scores-{method}-1"] = scores
    stages["table"] = {"run": "compare", "single": {method: [f"scores-{method}-1"] for method in METHODS}, "multi": {}}
    (folder / "run.json").write_text(json.dumps({"pipeline": "paper-table", "stages": stages}))
    return folder


@pytest.fixture(scope="module")
def study(run: Path) -> Path:
    folder = run.parent / "study"
    made = ran(["preference", run, "--methods", *METHODS, "--checks", 2, "--out", folder])
    assert made.code == 0, made.err
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_samples_that_an_evaluation_only_compares_with_are_of_its_concepts(run: Path, tmp_path: Path) -> None:
    first, second = (f"images-{method}-1" for method in METHODS)
    concepts = {"star": "embedded:striped-star"}
    scores = {"run": "evaluate", "samples": first, "compare": {"before": second}, "concepts": concepts}
    stages = {
        first: {"run": "sample"},
        second: {"run": "sample"},
        "scores": {**scores, "tokens": list(TOKENS.values())},
    }
    (tmp_path / "run.json").write_text(json.dumps({"pipeline": "one", "stages": stages}))
    for name in (first, second):
        (tmp_path / name).symlink_to(run / name)
    found = list(find_comparisons(read_run(tmp_path), (first, second)))
    assert len(found) == len(PLACES) * SEEDS
    assert {comparison.concepts for comparison in found} == {(("star", "embedded:striped-star"),)}


def page_of(study: Path) -> str:
    return (study / "preference.html").read_text(encoding="utf-8")


def test_the_page_tells_nothing_of_the_methods(study: Path) -> None:
    page = page_of(study)
    key = read_key(study / "key.json")
    assert len(key.pairs) == len(PLACES) * SEEDS + 2
    for word in (*METHODS, *TOKENS.values(), "paper-table", "images", str(study.parent)):
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", re.sub('data:image[^"]+', "", page)), word
    data = json.loads(re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[0])
    assert {pair["name"] for pair in data["pairs"]} == set(key.pairs)
    judged = [pair for pair in data["pairs"] if key.pairs[pair["name"]].check is None]
    assert {pair["text"] for pair in judged} == {f"a photo of a star {place}" for place in PLACES}
    assert all(set(pair) == {"name", "text", "concepts", "left", "right"} for pair in data["pairs"])
    assert {key.pairs[pair["name"]].left for pair in judged} == set(METHODS), "no method keeps to one side"
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_same_seed_makes_the_same_page(run: Path, study: Path, tmp_path: Path) -> None:
    command = ["preference", "page", run, "--methods", *METHODS, "--checks", 2, "--out"]
    assert ran([*command, tmp_path / "again"]).code == 0
    for name in ("preference.html", "key.json"):
        assert (tmp_path / "again" / name).read_bytes() == (study / name).read_bytes()
    assert ran([*command, tmp_path / "other", "--seed", 1]).code == 0
    orders = [list(read_key(place / "key.json").pairs.values()) for place in (study, tmp_path / "other")]
    assert orders[0] != orders[1]
    refused = ran([*command, tmp_path / "again", "--seed", 1])
    assert (refused.code, "another study" in refused.err) == (7, True)


@pytest.mark.parametrize(
    ("methods", "code", "words"),
    [
        (["custom-diffusion", "dreambuth"], 2, "did you mean 'dreambooth'"),
        (["dreambooth"], 2, "two different"),
        (["dreambooth", "dreambooth"], 2, "two different"),
    ],
)
def test_methods_that_are_not_there(run: Path, out: Path, methods: list[str], code: int, words: str) -> None:
    done = ran(["preference", run, "--methods", *methods, "--out", out])
    assert (done.code, words in done.err) == (code, True), done.err
    assert not out.exists()


def answer(browser: Browser, key: Key, wanted: str) -> None:
    """Answer the pair that is shown: for one method, or what a check asks for."""
    name = browser.run("return document.getElementById('judge').dataset.pair")
    facts = key.pairs[name]
    side = facts.check or ("left" if facts.left == wanted else "right")
    for question in key.questions:
        browser.one(f'input[name="{question}"][value="{side}"]').click()
    browser.wait(lambda: browser.one("#next").is_enabled())
    browser.one("#next").click()


def test_a_rater_answers_reloads_goes_on_and_is_counted(browser: Browser, study: Path, tmp_path: Path) -> None:
    key = read_key(study / "key.json")
    url = (study / "preference.html").as_uri()
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    options = {"behavior": "allow", "downloadPath": str(downloads)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", options)
    browser.open(url)
    browser.one("#rater").send_keys("Ada Ü")
    browser.one("#begin").click()
    assert not browser.one("#next").is_enabled(), "nobody goes on without an answer"
    for _ in range(3):
        answer(browser, key, METHODS[0])
    browser.driver.refresh()
    assert browser.text("#begin") == "Go on"
    browser.one("#begin").click()
    assert browser.text("#place") == f"Pair 4 of {len(key.pairs)}"
    browser.one("#back").click()
    assert browser.all('input[type="radio"]:checked')
    browser.one("#next").click()
    for _ in range(len(key.pairs) - 3):
        answer(browser, key, METHODS[0])
    browser.one("#download").click()
    (downloaded,) = browser.wait(lambda: [path for path in downloads.iterdir() if path.suffix == ".json"])
    pasted = tmp_path / "pasted.json"
    pasted.write_text(browser.run("return document.getElementById('answers').value"), encoding="utf-8")
    errors, hosts = browser.logs()
    assert (errors, hosts) == ([], set())
    assert json.loads(downloaded.read_text()) == json.loads(pasted.read_text())
    scored = ran(["preference", "score", downloaded, "--key", study / "key.json", "--format", "json"])
    assert scored.code == 0, scored.err
    assert scored.data["raters"] == ["Ada Ü"]
    assert {(duel["question"], duel["value"], duel["n"]) for duel in scored.data["duels"]} == {
        (question, 1.0, len(PLACES) * SEEDS) for question in key.questions
    }


def scored(study: Path, *files: Path, options: tuple[str, ...] = ()) -> Ran:
    return ran(["preference", "score", *files, "--key", study / "key.json", "--format", "json", *options])


def answers(folder: Path, path: Path, rater: str, side: str | None = None, **changes: object) -> Path:
    """A rater who prefers the first method everywhere, or always answers one side."""
    key = read_key(folder / "key.json")
    given = {
        name: dict.fromkeys(key.questions, side or facts.check or ("left" if facts.left == METHODS[0] else "right"))
        for name, facts in key.pairs.items()
    }
    values = {"format": "cdkit-preference-answers-1", "study": key.study, "rater": rater, "answers": given}
    path.write_text(json.dumps(values | changes))
    return path


def test_who_does_not_read_is_left_out(study: Path, tmp_path: Path) -> None:
    attentive = answers(study, tmp_path / "a.json", "ada")
    checks = {facts.check for facts in read_key(study / "key.json").pairs.values() if facts.check}
    wrong = "right" if checks == {"left"} else "left" if checks == {"right"} else "same"
    careless = answers(study, tmp_path / "b.json", "bob", wrong)
    done = scored(study, attentive, careless)
    assert (done.data["raters"], list(done.data["left_out"])) == (["ada"], ["bob"])
    assert "failed 2 of 2" in done.err
    kept = scored(study, attentive, careless, options=("--keep-inattentive",))
    assert kept.data["raters"] == ["ada", "bob"]
    assert scored(study, careless).code == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": "0" * 16}, "study"),
        ({"answers": {"pair-999": {"likeness": "left"}}}, "pair-999"),
        ({"answers": {"pair-001": {"likeness": "up"}}}, "holds no answers"),
        ({"format": "something"}, "holds no answers"),
        ({"answers": {}}, "answered nothing"),
    ],
)
def test_answers_that_are_none(study: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    done = scored(study, answers(study, tmp_path / "a.json", "ada", **changes))  # type: ignore[arg-type]
    assert (done.code, words in done.data["error"]["message"]) == (3, True), done.err


def test_one_rater_counts_once(study: Path, tmp_path: Path) -> None:
    files = [answers(study, tmp_path / name, "ada") for name in ("a.json", "b.json")]
    assert "two files of the rater ada" in scored(study, *files).data["error"]["message"]
