"""Content Credentials that were really signed: what they say of training is heard, and nobody is called for it."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cdkit.pictures.content_credentials import forbidden_training
from cdkit.pictures.picture import BytesContent
from cdkit.retrieval.inspect import InspectionRules, inspect
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import picture

EXTENSIONS = """
[req]
distinguished_name = name
[name]
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, emailProtection
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
CREATED = {"action": "c2pa.created", "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalArt"}


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A signer with a certificate that nobody trusts."""
    c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make certificates")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "x.cnf").write_text(EXTENSIONS)
    for name in ("root", "leaf"):
        new = ("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        run(folder, *new, "-out", f"{name}.key")
    settings, subject = ("-config", "x.cnf"), ("-subj", "/CN=nobody/O=nobody")
    run(folder, *("openssl", "req", "-x509", "-new", "-key", "root.key", "-out", "root.pem", "-extensions", "root"),
        *settings, *subject)  # fmt: skip
    run(folder, "openssl", "req", "-new", "-key", "leaf.key", "-out", "leaf.csr", *settings, *subject)
    run(folder, *("openssl", "x509", "-req", "-in", "leaf.csr", "-CA", "root.pem", "-CAkey", "root.key"),
        *("-CAcreateserial", "-out", "leaf.pem", "-extfile", "x.cnf", "-extensions", "leaf"))  # fmt: skip
    chain = (folder / "leaf.pem").read_bytes() + (folder / "root.pem").read_bytes()
    key = (folder / "leaf.key").read_bytes()
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=key, ta_url=None))


def signed(signer: Any, *assertions: dict[str, Any]) -> bytes:
    import c2pa

    manifest = {
        "claim_generator_info": [{"name": "test", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [CREATED]}}, *assertions],
    }
    target = io.BytesIO()
    c2pa.Builder(manifest).sign(signer, "image/jpeg", io.BytesIO(picture(1)), target)
    return target.getvalue()


def saying(owner: str, **uses: str) -> dict[str, Any]:
    entries = {f"{owner}.{use}": {"use": value} for use, value in uses.items()}
    return {"label": f"{owner}.training-mining", "data": {"entries": entries}}


@pytest.mark.parametrize("owner", ["c2pa", "cawg"])
@pytest.mark.parametrize(
    ("uses", "forbidden"),
    [
        ({"ai_generative_training": "notAllowed", "ai_inference": "allowed"}, "ai_generative_training: notAllowed"),
        ({"ai_training": "constrained"}, "ai_training: constrained"),
        ({"ai_training": "allowed", "ai_generative_training": "allowed", "ai_inference": "notAllowed"}, None),
    ],
)
def test_what_they_say_of_training_is_heard(
    signer: Any, tmp_path: Path, owner: str, uses: dict[str, str], forbidden: str | None
) -> None:
    content = signed(signer, saying(owner, **uses))
    assert forbidden_training(content) == (f"{owner}.{forbidden}" if forbidden else None)
    seen = inspect(BytesContent(content), InspectionRules(), tmp_path)
    assert (seen.reason, seen.detail) == (("do_not_train", f"{owner}.{forbidden}") if forbidden else (None, ""))


def test_credentials_without_a_word_on_training_and_damaged_ones_say_nothing(signer: Any) -> None:
    assert forbidden_training(signed(signer)) is None
    content = signed(signer, saying("cawg", ai_training="notAllowed"))
    assert forbidden_training(content[: len(content) // 3]) is None
    assert forbidden_training(picture(1) + b"c2pa") is None
    assert forbidden_training(b"c2pa") is None


def test_nobody_is_called_for_credentials_that_lie_elsewhere(signer: Any, server: HostileServer) -> None:
    remote = server.url("file/manifest.c2pa")
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{remote}"/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    body = b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode()
    content = picture(1)
    content = content[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + content[2:]
    assert forbidden_training(content) is None
    assert not server.hits


def test_pictures_without_credentials_are_not_even_looked_into() -> None:
    assert forbidden_training(picture(1)) is None
