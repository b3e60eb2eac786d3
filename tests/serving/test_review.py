"""The review without a browser: what is told of a set, decisions on disk, the map, and who may decide."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from cdkit.core.shards import parts
from cdkit.retrieval.decisions import read_decisions
from cdkit.serving.access import Access
from cdkit.serving.picture_map import plane
from cdkit.serving.review import DecisionFile, Review
from cdkit.serving.review_set import read_review_set
from cdkit.serving.server import bind
from tests.cli.running import ran
from tests.support.made_sets import PROMPT, made_set
from tests.support.served import Running

TOKEN = "pass"


def reviewing(folder: Path, decisions: Path | None = None, **settings: Any) -> Running:
    """A review that runs, ready to be entered."""
    address = bind("127.0.0.1", 0)
    review = Review(read_review_set(folder, **settings), DecisionFile(decisions or folder / "decisions.parquet"))
    return Running(review.app(Access(address.port, token=TOKEN, change_token=TOKEN)), address)


@pytest.fixture(scope="module")
def star_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_set(tmp_path_factory.mktemp("sets") / "stars")


@pytest.fixture
def review(star_set: Path, tmp_path: Path) -> Iterator[Running]:
    with reviewing(star_set, tmp_path / "decisions.parquet") as running:
        running.client.params = {"token": TOKEN}
        yield running


def decide(review: Running, action: str, *keys: str) -> list[str]:
    answer = review.client.post("/decisions", content=json.dumps({"action": action, "keys": keys}))
    assert answer.status_code == 200, answer.text
    rejected: list[str] = answer.json()["rejected"]
    return rejected


def test_everything_that_is_known_of_a_set_is_told(review: Running, star_set: Path) -> None:
    told = review.client.get("/set").json()
    assert [picture["key"] for picture in told["pictures"]] == [f"{number:06d}" for number in range(12)]
    first = told["pictures"][0]
    assert (first["host"], first["similarity"], first["licence"], first["query"]) == (
        "host-0.test",
        0.99,
        None,
        PROMPT,
    )
    assert [row["reason"] for row in told["left_out"]] == ["http_404", "too_small", "http_404"]
    assert {"000000", "000010"} in [set(keys) & {"000000", "000010"} for keys in told["alike"]]
    assert (told["name"], told["threshold"], told["prompts"]) == ("stars", 0.87, [PROMPT])
    assert told["command"].startswith("cdkit retrieve INDEX 'a photo of a star' --decisions ")
    rows = [row for path in parts(star_set / "images") for row in pq.read_table(path).to_pylist()]
    for row in rows[:2]:
        answer = review.client.get(f"/pictures/{row['key']}")
        assert answer.content == row["image"]["bytes"]
        assert answer.headers["content-type"] == "image/png"
    assert review.client.get("/pictures/000099").status_code == 404


def test_a_decision_is_on_disk_when_it_is_answered(review: Running, tmp_path: Path) -> None:
    path = tmp_path / "decisions.parquet"
    assert decide(review, "reject", "000002") == ["000002"]
    assert [entry.key for entry in read_decisions(path).rejected.values()] == ["000002"]
    assert decide(review, "reject", "000003", "000004", "000002") == ["000002", "000003", "000004"]
    assert decide(review, "restore", "000003") == ["000002", "000004"]
    undone = [review.client.post("/undo").json() for _ in range(4)]
    assert [step["rejected"] for step in undone] == [["000002", "000003", "000004"], ["000002"], [], []]
    assert [step["undoable"] for step in undone] == [True, True, False, False]
    log = read_decisions(path).log
    assert [(entry.action, entry.undoes) for entry in log if entry.undoes is not None] == [
        *[("reject", 2), ("restore", 1), ("restore", 1), ("restore", 0)]
    ]


def test_two_reviews_of_one_set_lose_nothing_of_each_other(review: Running, star_set: Path, tmp_path: Path) -> None:
    with reviewing(star_set, tmp_path / "decisions.parquet") as other:
        other.client.params = {"token": TOKEN}
        decide(review, "reject", "000001")
        assert decide(other, "reject", "000005") == ["000001", "000005"]
        assert review.client.get("/set").json()["rejected"] == ["000001", "000005"]


def test_only_who_knows_the_token_looks_and_decides(review: Running, tmp_path: Path) -> None:
    review.client.params = {}
    body = json.dumps({"action": "reject", "keys": ["000001"]})
    for wrong in ("", "?token=", "?token=passing"):
        assert review.client.get(f"/set{wrong}").status_code == 401
        assert review.client.get(f"/pictures/000001{wrong}").status_code == 401
        assert review.client.post(f"/decisions{wrong}", content=body).status_code == 401
    foreign = {"Origin": "http://127.0.0.1:9"}
    answer = review.client.post(f"/decisions?token={TOKEN}", content=body, headers=foreign)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert not (tmp_path / "decisions.parquet").exists()


@pytest.mark.parametrize(
    "body", ["", "[]", '{"action": "drop", "keys": ["000001"]}', '{"action": "reject", "keys": []}']
)
def test_what_makes_no_sense_changes_nothing(review: Running, tmp_path: Path, body: str) -> None:
    assert review.client.post("/decisions", content=body).status_code == 400
    unknown = json.dumps({"action": "reject", "keys": ["000001", "../../etc/passwd"]})
    assert review.client.post("/decisions", content=unknown).status_code == 400
    assert not (tmp_path / "decisions.parquet").exists()


def test_the_map_puts_together_what_looks_alike(review: Running) -> None:
    told = review.client.get("/map").json()
    places = {key: np.array([x, y]) for key, x, y in told["points"]}
    assert told["encoder"] == "embedded"
    assert set(places) == {f"{number:06d}" for number in range(12)}
    assert all(place.min() >= 0 and place.max() <= 1 for place in places.values())
    stars, balls = [np.stack([places[f"{n:06d}"] for n in part]) for part in (range(5), range(5, 10))]
    apart = np.linalg.norm(stars.mean(axis=0) - balls.mean(axis=0))
    assert apart > 0.8 * max(np.linalg.norm(part - part.mean(axis=0), axis=1).mean() for part in (stars, balls))


def test_a_map_is_the_plane_of_the_greatest_differences() -> None:
    random = np.random.default_rng(3)
    places = random.standard_normal((20, 2)) * [5, 2]
    axes, _ = np.linalg.qr(random.standard_normal((8, 2)))
    found = plane((places @ axes.T + 7).astype(np.float32))
    assert found.min(axis=0).tolist() == [0, 0]
    assert found.max(axis=0).tolist() == [1, 1]
    centred = places - places.mean(axis=0)
    main = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    assert abs(np.corrcoef(found[:, 0], main)[0, 1]) > 0.9999
    assert plane(np.ones((4, 3), dtype=np.float32)).tolist() == [[0, 0]] * 4


def test_a_set_that_does_not_say_its_encoder_has_no_map_but_a_hint(tmp_path: Path) -> None:
    folder = made_set(tmp_path / "set", 4, encoder=None, twins=0)
    with reviewing(folder) as review:
        answer = review.client.get("/map", params={"token": TOKEN})
        assert answer.status_code == 400
        assert "--encoder" in answer.json()["error"]["hint"]
    with reviewing(folder, encoder="embedded") as review:
        assert len(review.client.get("/map", params={"token": TOKEN}).json()["points"]) == 4


def test_the_command_refuses_what_it_cannot_review(tmp_path: Path, star_set: Path, index_folder: Path) -> None:
    assert ran(["review", tmp_path / "nowhere"]).code == 3
    assert ran(["review", index_folder]).code == 3
    assert ran(["review", index_folder, "a star"]).code == 2
    assert ran(["review", star_set, "--host", "0.0.0.0"]).code == 2
    (tmp_path / "other.parquet").write_bytes(b"no log")
    assert ran(["review", star_set, "--decisions", tmp_path / "other.parquet"]).code == 3


def started(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cdkit", "review", *map(str, words), "--format", "json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_candidates_of_an_index_are_reviewed_before_they_are_fetched(index_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with started(index_folder, PROMPT, "--count", 8, "--decisions", path) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        url = httpx.URL(told["url"])
        body = json.dumps({"action": "reject", "keys": ["000003"]})
        answer = httpx.post(url.join(f"/decisions?{url.query.decode()}"), content=body, trust_env=False)
        listed = httpx.get(url.join(f"/set?{url.query.decode()}"), trust_env=False).json()
        os.kill(process.pid, signal.SIGKILL)
    assert answer.json()["rejected"] == ["000003"]
    assert told["pictures"] == len(listed["pictures"]) == 8
    assert not any(picture["stored"] for picture in listed["pictures"])
    assert str(index_folder) in listed["command"]
    # Killed, nothing is lost.
    log = read_decisions(path)
    assert log.refuse(listed["pictures"][3]["url"])
    assert not log.refuse(listed["pictures"][2]["url"])


DECIDING = """
import sys
from pathlib import Path
from cdkit.retrieval.decisions import Decision
from cdkit.serving.review import DecisionFile
file, who = DecisionFile(Path(sys.argv[1])), sys.argv[2]
for number in range(15):
    made = Decision(0, "reject", f"{who}-{number}", "", "", None, "", decided="")
    file.change(lambda log, now: log.decide("reject", [made], now))
"""


def test_two_programs_that_decide_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "decisions.parquet"
    commands = [[sys.executable, "-c", DECIDING, str(path), who] for who in "ab"]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    rejected = {entry.key for entry in read_decisions(path).rejected.values()}
    assert rejected == {f"{who}-{number}" for who in "ab" for number in range(15)}


def test_decisions_that_cannot_be_written_are_no_fault_of_ours(star_set: Path, tmp_path: Path) -> None:
    with reviewing(star_set, tmp_path / "folder" / "decisions.parquet") as review:
        (tmp_path / "folder").write_text("a file where the folder was")
        body = json.dumps({"action": "reject", "keys": ["000001"]})
        answer = review.client.post("/decisions", params={"token": TOKEN}, content=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] != "bug"
