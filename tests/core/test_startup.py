"""Commands load what they use, and what was left out is there when it is wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import json, sys
from cdkit.cli.app import main
sys.argv = ["cdkit", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""
# Loaded because they are installed, or by somebody else's training and logging.
# What torch compiles with, and spreads weights over devices with.
COMPILING = {"torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp"}
NEVER = {"wandb", "timm", "sklearn", "tensorflow", "datasets"}


def _python(code: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _modules(*arguments: str | Path) -> set[str]:
    return set(json.loads(_python(COMMAND, *arguments).splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `embedded` index of a few captions, and a sample."""
    from cdkit.execute import execute
    from cdkit.index.config import IndexConfig
    from cdkit.sampling.config import SampleConfig

    folder = tmp_path_factory.mktemp("startup")
    table = folder / "captions.csv"
    table.write_text("caption\n" + "\n".join(f"a photo of a star number {number}" for number in range(40)))
    execute("index", IndexConfig(captions=[str(table)]), folder / "index")
    execute("sample", SampleConfig(prompts=["a photo of a star"], seeds=1, steps=1), folder / "samples")
    return folder


def test_a_search_loads_the_tower_alone(folder: Path) -> None:
    loaded = _modules("index", "search", folder / "index", "a photo of a star")
    assert "torch" in loaded
    libraries = {"diffusers", "transformers", "open_clip", "accelerate", "torchvision", "peft", "scipy", "pandas"}
    assert not loaded & (libraries | NEVER | {"torch._dynamo", "sympy"})


def test_an_evaluation_loads_the_towers_alone(folder: Path) -> None:
    places = ("--samples", folder / "samples", "--out", folder / "scores")
    loaded = _modules("evaluate", *places, "--concept", "star=embedded:striped-star")
    assert "torch" in loaded
    assert not loaded & ({"diffusers", "transformers", "open_clip", "peft", "scipy", "pandas"} | NEVER)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "--steps", "1", "--seeds", "1", "--prompt", "a star"),
        ("train", "--steps", "1", "--batch-size", "1", "--concept", "star=embedded:striped-star"),
    ],
    ids=["sample", "train"],
)
def test_pipelines_come_without_what_is_only_installed(arguments: tuple[str, ...], tmp_path: Path) -> None:
    loaded = _modules(*arguments, "--out", tmp_path / "out")
    assert "diffusers" in loaded
    assert not loaded & ({"pandas", "peft", "scipy.stats", "scipy.optimize", "scipy.integrate"} | COMPILING | NEVER)


def test_doctor_loads_no_compiler_and_no_models() -> None:
    loaded = _modules("doctor")
    assert "torchvision" in loaded
    assert not loaded & ({"torchvision.models", "diffusers", "transformers", "pandas", "sympy"} | COMPILING | NEVER)


USES = (
    # Schedulers and losses that were given stand-ins for scipy.
    "from diffusers import EulerDiscreteScheduler as S\n"
    "s = S(use_beta_sigmas=True); s.set_timesteps(5); assert len(s.sigmas) == 6",
    "from diffusers import LMSDiscreteScheduler as S\n"
    "s = S(); s.set_timesteps(5); assert s.get_lms_coefficient(2, 2, 0)",
    "import numpy as np, transformers.loss.loss_for_object_detection as l\n"
    "assert l.linear_sum_assignment(np.eye(3))[0].tolist() == [0, 1, 2]",
    "import scipy.stats, scipy.optimize; assert scipy.stats.norm.cdf(0) == 0.5",
    "import imagehash; from PIL import Image; imagehash.phash(Image.new('RGB', (64, 64)))",
    "from importlib.metadata import packages_distributions as p; assert 'torch' in p()",
    "import torch; assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2",
    "from diffusers.utils import is_scipy_available; assert is_scipy_available()",
    # What was put off with the compiler.
    "import torch._dynamo.config as c, torch; assert c is torch._dynamo.config and not torch._dynamo.is_compiling()",
    "from torch.distributed.tensor import DTensor; import torch; assert not isinstance(torch.ones(1), DTensor)",
    "from torch.nn.attention.flex_attention import create_block_mask as c; assert callable(c)",
    "import torchvision.transforms as t; assert t.Resize(2)(torch.ones(3, 4, 4)).shape == (3, 2, 2)",
    "from torchvision import models as m; assert 'resnet18' in dir(m) and m.resnet18(num_classes=2)",
    "import torchvision; assert torchvision.io.ImageReadMode.RGB and torchvision.datasets.ImageFolder.__init__",
    "from diffusers.utils.torch_utils import is_compiled_module as i; from torch import nn\n"
    "assert i(torch.compile(nn.Linear(1, 1))) and not i(nn.Linear(1, 1))",
)


def test_what_was_left_out_is_there_when_it_is_used() -> None:
    """In one process: starting one for each took a tenth of all tests' time."""
    claim = "from cdkit.core.startup import claim_process, import_pipelines\nclaim_process(); import_pipelines()"
    _python("\n".join((claim, *USES)))


def test_what_ran_before_something_is_compiled_can_be_compiled() -> None:
    """An optimizer's step asks for the compiler's `disable`, and keeps what it gave: with the compiler there, too."""
    _python(
        "from cdkit.core.startup import claim_process, import_pipelines\n"
        "claim_process(); import_pipelines()\n"
        "import sys, torch\n"
        "def stepped():\n"
        "    weight = torch.ones(3, requires_grad=True)\n"
        "    optimizer = torch.optim.SGD([weight], lr=1.0)\n"
        "    weight.sum().backward()\n"
        "    optimizer.step()\n"
        "    return weight.detach().tolist()\n"
        "assert stepped() == [0, 0, 0] and 'sympy' not in sys.modules\n"
        "compiled = torch.compile(lambda x: x + 1, backend='eager', fullgraph=True)\n"
        "assert compiled(torch.ones(1)) == 2 and stepped() == [0, 0, 0]\n"
        "assert type(sys.modules['torch._dynamo']).__name__ == 'module'"
    )


def test_libraries_that_cannot_do_with_stand_ins_are_imported_without() -> None:
    _python(
        "from cdkit.core import startup\n"
        "startup.LATE = (*startup.LATE, 'accelerate', 'huggingface_hub')\n"
        "startup.claim_process(); startup.import_pipelines()\n"
        "import accelerate, diffusers\n"
        "assert accelerate.__version__ and diffusers.StableDiffusionPipeline"
    )


def test_a_process_of_others_keeps_its_libraries() -> None:
    found = _python(
        "import gc, sys; before = gc.get_threshold()\n"
        "from cdkit.core.startup import import_pipelines\n"
        "import_pipelines(); import pandas, pyarrow\n"
        "assert 'diffusers' not in sys.modules and gc.get_threshold() == before\n"
        "print(pyarrow.array(pandas.Series([1, 2])).to_pylist())"
    )
    assert found.strip() == "[1, 2]"


def test_a_package_that_is_not_used_is_found_and_not_imported() -> None:
    _python(
        "from cdkit.core.startup import claim_process; claim_process(); claim_process()\n"
        "import importlib.util, sys, pyarrow\n"
        "assert importlib.util.find_spec('pandas') is not None\n"
        "assert pyarrow.array([1, None, 'x'][:2]).to_pylist() == [1, None] and 'pandas' not in sys.modules\n"
        "try:\n    import pandas\nexcept ModuleNotFoundError:\n    sys.exit()\n"
        "sys.exit(1)"
    )
