from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.encoders import load_text_encoder, parse_spec, resolve_precision


def test_specs_are_split() -> None:
    assert parse_spec("embedded") == ("embedded", "")
    assert parse_spec("open_clip:ViT-L-14/openai") == ("open_clip", "ViT-L-14/openai")
    assert parse_spec("transformers:openai/clip-vit-large-patch14") == (
        "transformers",
        "openai/clip-vit-large-patch14",
    )


@pytest.mark.parametrize(
    "spec", ["", "openclip:x", "embeded", "embedded:x", "open_clip:", "ViT-L-14", "transformers:a/b/c"]
)
def test_malformed_specs_are_configuration_errors(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(spec)
    assert caught.value.hint


def test_a_misspelt_library_is_suggested() -> None:
    with pytest.raises(ConfigError, match="'open_clip'"):
        parse_spec("openclip:ViT-L-14/openai")


def test_missing_folders_and_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parse_spec(f"open_clip:{tmp_path}/nothing")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(InputError, match="is a file"):
        parse_spec(f"transformers:{tmp_path}/weights.pt")


def test_precision_and_device() -> None:
    assert resolve_precision(None, "cpu") == resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("auto", "cuda:1") == "fp16"
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(ConfigError, match="fp16"):
        resolve_precision("f16", "cpu")
    with pytest.raises(ConfigError, match="no device 'cdua'"):
        load_text_encoder("embedded", device="cdua")
    with pytest.raises(ConfigError, match="no device 'cuda:99'"):
        load_text_encoder("embedded", device="cuda:99")


def test_importing_the_package_is_light() -> None:
    code = "import sys, cdkit.encoders, cdkit.index.stage as t; t.EmbedConfig.model_fields; "
    code += (
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'open_clip', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


IMPORTS = """
import json, sys
from cdkit import encoders
for spec in sys.argv[1:]:
    encoder = encoders.load_text_encoder(spec)
    encoder.encode(["a dog"])
print(json.dumps([name for name in ("wandb", "timm", "open_clip") if name in sys.modules]))
"""


@pytest.mark.parametrize(
    ("library", "expected"), [("embedded", []), ("transformers", []), ("open_clip", ["timm", "open_clip"])]
)
def test_no_encoder_imports_what_logs_trainings(
    library: str, expected: list[str], open_clip_model: Path, clip_model: Path
) -> None:
    specs = {"transformers": f"transformers:{clip_model}", "open_clip": f"open_clip:{open_clip_model}"}
    command = [sys.executable, "-c", IMPORTS, specs.get(library, library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_what_was_kept_out_can_be_imported_afterwards() -> None:
    code = "from cdkit.encoders.tokenizing import open_clip_library as o; o(); import wandb; print(wandb.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "wandb"
