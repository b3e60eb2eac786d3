from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from cdkit.core.shards import write_tensors


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    """Header texts come out of safetensors in a random order."""
    tensors = {f"unet.{number}": torch.full((2, 3), float(number)) for number in range(4)}
    header = {f"text {number}": f'ä "quoted" \\ \n {number}' for number in range(12)}
    for number in range(6):
        write_tensors(tmp_path / str(number), tensors, header)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(6)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == header
        assert all(file.get_tensor(name).equal(tensor) for name, tensor in tensors.items())
