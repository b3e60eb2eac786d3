from __future__ import annotations

import pytest
import torch

from cdkit.pictures.embedding import nearest_photo


def test_a_copied_photo_is_the_nearest() -> None:
    photos = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    between = torch.nn.functional.normalize(photos[:1] + photos[1:2])
    near = nearest_photo(torch.cat([photos[2:3], between]), photos)
    assert near[0] == pytest.approx(1.0, abs=1e-6)
    assert near[1] == pytest.approx(float((between @ photos.T).max()), abs=1e-6)
    assert near[1] < 1 - 1e-3
