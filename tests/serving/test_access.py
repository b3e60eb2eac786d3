"""Who is let in: names that lead here, pages of other sites, tokens, and what no request reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdkit.serving.access import Access
from cdkit.serving.server import is_loopback
from tests.support.served import Running, serving


@pytest.mark.parametrize("host", ["evil.example:1234", "127.0.0.1.nip.io", "127.0.0.1:1", ""])
def test_a_name_that_leads_here_does_not_open_the_door(service: Running, host: str) -> None:
    answer = service.client.get("/indices-list", headers={"Host": host})
    assert answer.status_code == 421
    assert "scenes" not in answer.text


def test_pages_of_other_sites_get_nothing(service: Running) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        for method, path in (("POST", "/knn-service"), ("GET", "/search?q=star"), ("GET", "/indices-list")):
            answer = service.client.request(method, path, headers={"Origin": origin}, content=b'{"text": "star"}')
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    hidden = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert service.client.get("/search?q=star", headers=hidden).status_code == 403


def test_a_page_on_this_machine_may_use_the_old_protocol_alone(service: Running) -> None:
    origin = {"Origin": "http://localhost:1235"}
    answer = service.client.get("/indices-list", headers=origin)
    assert answer.headers["access-control-allow-origin"] == origin["Origin"]
    assert answer.headers["vary"] == "Origin"
    assert service.client.get("/search?q=star", headers=origin).status_code == 403
    own = {"Origin": service.url.rstrip("/")}
    assert service.client.get("/search?q=star", headers=own).status_code == 200


def test_every_request_needs_the_token_where_one_was_given(index_folder: Path) -> None:
    with serving(index_folder, rules={"token": "secret", "open_to_all": True}) as service:
        assert service.client.get("/search?q=star").status_code == 401
        assert service.client.get("/search?q=star&token=secrets").status_code == 401
        assert service.client.get("/search?q=star&token=secret", headers={"Host": "here:80"}).status_code == 200
        assert service.client.get("/search?q=star", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert service.client.post("/knn-service?token=secret", content=b'{"text": "star"}').status_code == 200
        assert service.client.get("/healthz").status_code == 200


def test_what_changes_something_needs_its_own_token() -> None:
    access, headers = Access(80, change_token="pass"), {"host": "localhost"}
    assert access.refusal("GET", "/decisions", headers, "") is None
    assert access.refusal("POST", "/decisions", headers, "token=pass") is None
    for refused in ("", "token=", "token=pas"):
        assert access.refusal("POST", "/decisions", headers, refused) is not None
    assert access.refusal("POST", "/decisions", {**headers, "origin": "http://localhost:1"}, "token=pass") is not None
    assert Access(80, host="127.0.0.7").refusal("GET", "/", {"host": "127.0.0.7"}, "") is None
    assert Access(80).refusal("POST", "/decisions", headers, "token=") is not None


def test_answers_carry_the_rules_for_browsers(service: Running) -> None:
    headers = service.client.get("/healthz").headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/assets/../../pyproject.toml", "/assets/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd"])
def test_no_path_reaches_the_file_system(service: Running, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "custom-diffusion-kit" not in answer.text


@pytest.mark.parametrize("origin", ["http://[", "http://[::1"])
def test_an_origin_that_no_parser_takes_is_one_of_another_site(service: Running, origin: str) -> None:
    for method, path in (("GET", "/search?q=star"), ("POST", "/knn-service")):
        answer = service.client.request(method, path, headers={"Origin": origin}, content=b'{"text": "star"}')
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_on_this_machine_may_send_json_by_its_name(index_folder: Path) -> None:
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with serving(index_folder, rules={"token": "secret"}) as service:
        allowed = service.client.options("/knn-service", headers={"Origin": "http://localhost:3000", **wish})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "content-type" in allowed.headers["access-control-allow-headers"]
        for path, origin in (("/knn-service", "https://evil.example"), ("/search", "http://localhost:3000")):
            refused = service.client.options(path, headers={"Origin": origin, **wish})
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


def test_a_name_that_begins_like_a_loopback_address_is_none() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.0.1", "::1", "localhost", "[::1]")))
    assert not any(map(is_loopback, ("127.evil.example", "0.0.0.0", "::", "", "192.168.0.1")))


def test_unknown_paths_and_methods_are_answered_like_other_errors(service: Running) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/knn-service", 405)):
        answer = service.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["message"] == answer.json()["error"]["message"] != ""


def test_a_token_may_have_letters_of_any_language() -> None:
    access = Access(80, token="sécret")
    for sent, refused in (("sécret", False), ("secret", True), ("\xff", True)):
        as_read = sent.encode().decode("latin-1")
        headers = {"host": "localhost", "authorization": f"Bearer {as_read}"}
        assert (access.refusal("GET", "/search", headers, "q=star") is not None) == refused
    assert access.refusal("GET", "/search", {"host": "localhost"}, "token=s%C3%A9cret") is None
