"""Files that are damaged, mislabelled or hostile: refused with a reason, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cdkit.core.config import parse_config
from cdkit.core.errors import InputError
from cdkit.deltas.config import ImportDeltaConfig
from cdkit.deltas.importing import read_foreign
from cdkit.execute import execute


class _Trap:
    """Unpickling this writes a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    sprung = tmp_path / "sprung"
    values = {"unet": {"a": torch.ones(2)}, "modifier_token": {"<new1>": _Trap(sprung)}}
    path = tmp_path / "delta.bin"
    torch.save(values, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="Nothing in it was run"):
        read_foreign(path)
    assert not sprung.exists()
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(InputError):
        read_foreign(tmp_path / "plain.bin")
    assert not sprung.exists()
    with pytest.raises(InputError):
        execute("delta-import", parse_config(ImportDeltaConfig, {"files": [str(path)]}), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    # The trap works: read the way others read such files, it goes off.
    torch.load(path, weights_only=False)
    assert sprung.exists()


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"<new1>": torch.zeros(4_000_000)}, tmp_path / "honest.bin")
    bomb = tmp_path / "bomb.bin"
    with (
        zipfile.ZipFile(tmp_path / "honest.bin") as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpack to"):
        read_foreign(bomb)


def _expanded(folder: Path) -> Path:
    torch.save({"<new1>": torch.ones(1).expand(1000, 768)}, folder / "expanded.bin")
    return folder / "expanded.bin"


def _truncated(folder: Path) -> Path:
    torch.save({"<new1>": torch.ones(5000)}, folder / "whole.bin")
    (folder / "half.bin").write_bytes((folder / "whole.bin").read_bytes()[:9000])
    return folder / "half.bin"


def _truncated_safetensors(folder: Path) -> Path:
    save_file({"<new1>": torch.ones(5000)}, str(folder / "whole.safetensors"))
    (folder / "half.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:9000])
    return folder / "half.safetensors"


def _saved(folder: Path, values: Any) -> Path:
    torch.save(values, folder / "file.bin")
    return folder / "file.bin"


def _huge(folder: Path) -> Path:
    with open(folder / "huge.bin", "wb") as handle:
        handle.write(b"\x80\x02")
        handle.truncate(5 << 30)
    return folder / "huge.bin"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_expanded, "its tensors say"),
        (_truncated, "damaged archive|no weight file"),
        (_truncated_safetensors, "cut short"),
        (_huge, "too large"),
        (lambda at: _saved(at, [1, 2]), "holds a list"),
        (lambda at: _saved(at, {1: torch.ones(2)}), "no name"),
        (lambda at: _saved(at, {"../../etc/x": torch.ones(768)}), "looks like a path"),
        (lambda at: _saved(at, {"a\nb": torch.ones(768)}), "names a token"),
        (lambda at: _saved(at, {"<new1>": torch.full((4,), float("nan"))}), "NaN"),
        (lambda at: _saved(at, {"<new1>": torch.ones(2, 2, 2)}), "no known kind"),
        (lambda at: _saved(at, {"<new1>": torch.ones(4).to_sparse()}), "plain tensor|refused"),
        (lambda at: _saved(at, {"<new1>": torch.ones(4, dtype=torch.int64)}), "no tensor of weights"),
        (lambda at: _saved(at, {"state_dict": {"../../x.attn2.to_k.weight": torch.ones(2, 2)}}), "no cross-attention"),
        (lambda at: _saved(at, {"unet": {"a": torch.ones(2)}, "text_encoder": {"b": torch.ones(2)}}), "text encoder"),
        (lambda at: _saved(at, {"unet": {"a": {"u": torch.ones(4, 0), "v": torch.ones(0, 3)}}}), "do not fit"),
        (lambda at: _saved(at, {"unet": {"a": {"u": torch.ones(4, 2)}}}), "does not hold u and v"),
        (lambda at: _saved(at, {"unet": {"a": "b"}}), "no tensor of weights"),
        (
            lambda at: _saved(at, {"x.attn2.processor.to_z_custom_diffusion.weight": torch.ones(2, 2)}),
            "no Custom Diffusion",
        ),
        (
            lambda at: _saved(at, {"first_stage_model.x": torch.ones(2, 2, 2), "y.weight": torch.ones(2)}),
            "whole Stable Diffusion",
        ),
        (lambda at: _saved(at, {"unet.a.lora_A.weight": torch.ones(2, 3)}), "only one of its two"),
        (lambda at: _saved(at, {"text_encoder.a.lora_A.weight": torch.ones(2, 3)}), "text encoder"),
        (lambda at: _saved(at, {"lora_te_a.lora_up.weight": torch.ones(2, 3)}), "text encoder"),
        (
            lambda at: _saved(
                at,
                {
                    "lora_unet_a.lora_up.weight": torch.ones(2, 3, 1, 1),
                    "lora_unet_a.lora_down.weight": torch.ones(3, 2),
                },
            ),
            "no matrix of a U-Net",
        ),
        (lambda at: _saved(at, {}), "no known kind"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_foreign(make(tmp_path))
