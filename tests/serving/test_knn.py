"""clip-retrieval's protocol: its own client, the public recipes' requests, and what a caption index cannot do."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdkit.embedded.pool import PoolServer
from cdkit.encoders import load_text_encoder
from cdkit.index.search import search
from tests.support.hashing_encoder import HashingEncoder
from tests.support.photo_pool import PoolPicture, index_of
from tests.support.served import Running, serving
from tests.support.small_index import grammar_captions, make_index

PROMPT = "a photo of a star"


def clip_client() -> Any:
    """The module of clip-retrieval's client, by its file: the package itself imports a whole server."""
    try:
        files = importlib.metadata.files("clip-retrieval") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-retrieval is not installed: pip install --no-deps clip-retrieval")
    path = next(file.locate() for file in files if file.name == "clip_client.py")
    specification = importlib.util.spec_from_file_location("clip_client", str(path))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def ask(service: Running, body: Any, status: int = 200) -> Any:
    """Post a body as old clients do, without saying that it is JSON."""
    answer = service.client.post("/knn-service", content=json.dumps(body))
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_client_from_pypi_gets_captions_and_urls(service: Running, index_folder: Path) -> None:
    client = clip_client().ClipClient(url=f"{service.url}knn-service", indice_name="laion_400m", num_images=30)
    results = client.query(text=PROMPT)
    assert len(results) == 30
    assert all(entry["url"].startswith("http://127.0.0.1") for entry in results)
    expected = search(index_folder, [PROMPT], min_similarity=-1, limit=30)[0].results
    assert [entry["caption"] for entry in results] == [match.caption for match in expected]
    assert [entry["id"] for entry in results] == [match.caption_id for match in expected]
    assert [entry["similarity"] for entry in results] == pytest.approx([m.similarity for m in expected], abs=2e-6)


def test_the_client_asks_by_embedding_and_by_picture(
    service: Running, pictures: PoolServer, tmp_path: Path, index_folder: Path
) -> None:
    client = clip_client().ClipClient(url=f"{service.url}knn-service", indice_name="laion_400m", num_images=5)
    vector = 3 * load_text_encoder("embedded", precision="fp32").encode([PROMPT])[0]
    assert client.query(embedding_input=vector.tolist()) == client.query(text=PROMPT)
    entry = client.query(text=PROMPT)[0]
    seed = int(entry["url"].rsplit("/", 1)[1].split("-")[0])
    from cdkit.embedded.pool import picture_bytes

    (tmp_path / "star.png").write_bytes(picture_bytes(seed, 256, "png"))
    found = client.query(image=str(tmp_path / "star.png"))
    assert sum("star" in result["caption"] for result in found) >= 3


def adobe(number: int) -> dict[str, Any]:
    """What the recipe of the paper's authors sends: the client's defaults, with little weight on beauty."""
    return _sent(number, aesthetic_weight=0.1)


def diffusers(number: int) -> dict[str, Any]:
    """What the recipe in diffusers' examples sends."""
    return _sent(number, aesthetic_weight=0.1)


def _sent(number: int, *, aesthetic_weight: float) -> dict[str, Any]:
    queries = {"text": PROMPT, "image": None, "image_url": None, "embedding_input": None}
    switches = {"deduplicate": True, "use_safety_model": True, "use_violence_detector": True, "use_mclip": False}
    beauty = {"aesthetic_score": 9, "aesthetic_weight": aesthetic_weight}
    numbers = {"modality": "image", "num_images": number, "num_result_ids": number}
    return {**queries, **switches, "indice_name": "laion_400m", **beauty, **numbers}


@pytest.mark.parametrize(("recipe", "first", "factor"), [(adobe, 2.0, 1.0), (diffusers, 1.5, 1.5)])
def test_the_public_recipes_get_their_200_images(service: Running, recipe: Any, first: float, factor: float) -> None:
    wanted, number = 200, int(first * 200)
    while True:
        results = ask(service, recipe(number))
        if len(results) >= factor * wanted or number > 1e4:
            break
        number = int(factor * number)
    usable = {entry["url"]: entry["caption"] for entry in results if entry["url"] and entry["caption"]}
    assert len(usable) >= wanted


def test_the_page_asks_for_many_ids_and_gets_their_facts_later(service: Running) -> None:
    body = {"text": PROMPT, "image": None, "image_url": None, "embedding_input": None, "modality": "image"}
    body |= {"num_images": 3, "num_result_ids": 9, "indice_name": "scenes", "use_mclip": False, "deduplicate": True}
    body |= {"use_safety_model": True, "use_violence_detector": True, "aesthetic_score": "", "aesthetic_weight": "0.5"}
    results = ask(service, body)
    assert [set(entry) >= {"url", "caption"} for entry in results] == [True] * 3 + [False] * 6
    assert all(set(entry) == {"id", "similarity"} for entry in results[3:])
    # The page's JavaScript sends ids beyond 2^53 as texts.
    ids = [str(entry["id"]) for entry in results]
    told = service.client.post(
        "/metadata", content=json.dumps({"ids": [*ids, -1, 17], "indice_name": "scenes"})
    ).json()
    assert [entry["id"] for entry in told] == [entry["id"] for entry in results]
    assert [entry["metadata"]["url"] for entry in told[:3]] == [entry["url"] for entry in results[:3]]
    assert service.client.post("/metadata", content='{"ids": [], "indice_name": "scenes"}').json() == []
    assert service.client.get("/indices-list").json() == ["scenes"]


def test_null_and_empty_values_say_nothing(service: Running) -> None:
    said_nothing = {"image": "", "num_images": None, "num_result_ids": "", "indice_name": None, "modality": ""}
    nothing = {"aesthetic_score": None, "aesthetic_weight": "", "deduplicate": None, "use_mclip": ""}
    assert len(ask(service, {"text": PROMPT, **said_nothing, **nothing})) == 40
    assert ask(service, {"text": PROMPT, "num_images": 0}) == []


def test_the_reply_says_what_the_request_was_taken_to_mean(service: Running) -> None:
    answer = service.client.post("/knn-service", content=json.dumps(adobe(1)))
    assert answer.headers["x-cdkit-answer"].startswith("index scenes; modality image by captions")
    assert answer.headers["x-cdkit-ignored"] == "aesthetic_score, use_violence_detector"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"text": ""}, "one of text"),
        ([1, 2], "object"),
        ({"text": "a dog", "num_images": -1}, "num_images"),
        ({"text": "a dog", "modality": "video"}, "modality"),
        ({"embedding_input": [1.0, 2.0]}, "numbers"),
        ({"embedding_input": [0.0] * 512}, "numbers"),
        ({"image": "no base64"}, "base64"),
        ({"text": "Ã©â€™ &amp;amp; " * 1000}, "text"),
        ({"image_url": "http://host.test/" + "x" * 9000}, "image_url"),
        ({"embedding_input": [1.0] * 70_000}, "embedding_input"),
        ({"image": base64.b64encode(b"no picture").decode()}, "picture"),
    ],
)
def test_what_makes_no_sense_is_answered_by_a_message(service: Running, body: Any, word: str) -> None:
    assert word in ask(service, body, 400)["message"]
    assert "JSON" in service.client.post("/knn-service", content=b"{").json()["message"]


def test_a_picture_is_fetched_through_the_guard_only(
    service: Running, pictures: PoolServer, index_folder: Path
) -> None:
    url = ask(service, {"text": PROMPT, "num_images": 1})[0]["url"]
    for unreachable in (url, "file:///etc/passwd", "http://[::1]/x.png"):
        message = ask(service, {"image_url": unreachable}, 502)["message"]
        assert "image_url was not fetched" in message
        assert "root:" not in message
    with serving(index_folder, allow_hosts=(pictures.host,)) as trusting:
        assert len(ask(trusting, {"image_url": url, "num_images": 3})) == 3


def test_an_index_without_a_picture_tower_says_so(tmp_path: Path) -> None:
    encoder = HashingEncoder(32)
    picture = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(picture, "PNG")
    with serving(make_index(tmp_path / "words", grammar_captions(50), encoder), encoder=encoder) as service:
        told = ask(service, {"image": base64.b64encode(picture.getvalue()).decode()}, 400)
    assert "no picture tower" in told["message"]


def test_without_deduplication_every_image_of_a_caption_comes(tmp_path: Path) -> None:
    encoder = HashingEncoder(32)
    captions = grammar_captions(60)
    with serving(make_index(tmp_path / "words", captions, encoder), encoder=encoder) as service:
        once = ask(service, {"text": captions[0], "num_images": 8, "deduplicate": True})
        each = ask(service, {"text": captions[0], "num_images": 8, "deduplicate": False})
        texts = ask(service, {"text": captions[0], "num_images": 8, "modality": "text"})
    assert len({entry["id"] for entry in once}) == 8
    assert once[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [entry["id"] for entry in each[:2]] == [once[0]["id"]] * 2
    assert len({entry["url"] for entry in each}) == 8
    assert [entry["caption"] for entry in texts] == [entry["caption"] for entry in once]


def test_an_address_that_is_a_program_or_a_file_is_no_picture(tmp_path: Path) -> None:
    encoder = HashingEncoder(32)
    urls = [
        "JavaScript:alert(1)",
        "data:text/html,<script>",
        "//host.test/x",
        "file:///etc/passwd",
        "HTTPS://host.test/x",
    ]
    folder = index_of(tmp_path / "words", [PoolPicture(f"star {n}", url) for n, url in enumerate(urls)], encoder)
    with serving(folder, encoder=encoder) as service:
        assert [entry["url"] for entry in ask(service, {"text": "star"})] == urls[-1:]
        texts = ask(service, {"text": "star", "modality": "text"})
        ids = [entry["id"] for entry in texts]
        told = service.client.post("/metadata", content=json.dumps({"ids": ids})).json()
    assert len(texts) == len(told) == 5
    assert {entry.get("url") for entry in [*texts, *(entry["metadata"] for entry in told)]} == {None, urls[-1]}
