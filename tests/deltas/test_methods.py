from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn

from cdkit.core.errors import ConfigError
from cdkit.deltas.methods import METHODS, MethodName, selected_names
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_pipeline(tmp_path_factory.mktemp("base")).unet


def test_the_table_and_its_names_agree() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert all(name == method.name for name, method in METHODS.items())
    assert METHODS["custom-diffusion"].recipe.steps == 250
    assert METHODS["custom-diffusion"].recipe.learning_rate == 8e-5


def test_custom_diffusion_trains_cross_attention_keys_and_values(unet: Any) -> None:
    names = selected_names(unet, METHODS["custom-diffusion"])
    # Four cross-attention layers: one going down, one in the middle, two going up.
    assert len(names) == 8
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in names)
    assert len({name for name, _ in unet.named_modules() if name.endswith(".attn2")}) == 4


def test_all_of_cross_attention_adds_queries_and_outputs(unet: Any) -> None:
    names = set(selected_names(unet, METHODS["custom-diffusion-attention"]))
    assert names > set(selected_names(unet, METHODS["custom-diffusion"]))
    ends = {name.split(".attn2.")[1] for name in names}
    assert ends == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"}


@pytest.mark.parametrize("method", ["dreambooth", "fine-tune-all"])
def test_full_fine_tunes_train_everything(unet: Any, method: str) -> None:
    assert selected_names(unet, METHODS[method]) == [name for name, _ in unet.named_parameters()]


def test_textual_inversion_trains_no_weights(unet: Any) -> None:
    assert selected_names(unet, METHODS["textual-inversion"]) == []


def test_a_model_without_cross_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit this model"):
        selected_names(nn.Linear(2, 2), METHODS["custom-diffusion"])
