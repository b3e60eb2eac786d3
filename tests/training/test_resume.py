"""A training that was stopped anywhere ends as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import OutputError
from cdkit.core.storage import read_json, write_json
from cdkit.training.checkpoint import Checkpoints
from tests.support.progress import Notes
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, losses, run

STEPS = 7


def _config(material: Material, **values: Any) -> Any:
    settings = {"steps": STEPS, "batch_size": 2, "checkpoint_every": 2, "flip": True, **values}
    return material.config(**settings)


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(_config(material), out)
    return out


def _assert_equal(out: Path, whole: Path) -> None:
    one, other = delta_tensors(out), delta_tensors(whole)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert losses(out) == losses(whole)


@pytest.mark.parametrize("stops", [[1], [2, 3], [5, 1, 2]])
def test_stopped_and_resumed_equals_uninterrupted(
    material: Material, whole: Path, out: Path, stops: list[int]
) -> None:
    for steps in stops:
        with pytest.raises(Interrupted):
            run(_config(material), out, progress=StopAfter(steps))
        assert not (out / "delta.safetensors").exists()
    notes = Notes()
    assert run(_config(material), out, progress=notes).state == "done"
    _assert_equal(out, whole)
    assert any("Going on after step" in note for note in notes.notes) == (max(stops) >= 2)
    assert run(_config(material), out).state == "cached"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(material: Material, whole: Path, out: Path) -> None:
    with pytest.raises(Interrupted):
        run(_config(material), out, progress=StopAfter(5))
    newest = out / "checkpoints" / "step-000004" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    notes = Notes()
    run(_config(material), out, progress=notes)
    assert "Going on after step 2." in notes.notes
    _assert_equal(out, whole)


@pytest.mark.parametrize(("began", "asked", "expected"), [(2, None, 2), (2, 1, 1), (1, None, 1)])
def test_a_training_goes_on_with_the_threads_it_began_with(
    material: Material, out: Path, began: int, asked: int | None, expected: int
) -> None:
    with pytest.raises(Interrupted):
        run(_config(material, threads=began), out, progress=StopAfter(3))
    assert read_json(out / "checkpoints" / "step-000002" / "position.json")["threads"] == began
    notes = Notes()
    result = run(_config(material, threads=asked), out, progress=notes)
    assert result.manifest.run["threads"] == expected
    told = [note for note in notes.notes if "made on" in note]
    assert bool(told) == (asked not in (None, began))
    assert torch.get_num_threads() == 1, "the process has its own number again"


@pytest.mark.parametrize("damage", ["no step", "no number", "deep", "pointer", "other shapes", "empty"])
def test_checkpoints_that_cannot_be_gone_on_from_are_passed_over(
    material: Material, whole: Path, out: Path, damage: str
) -> None:
    from cdkit.core.shards import read_tensors, write_tensors

    with pytest.raises(Interrupted):
        run(_config(material), out, progress=StopAfter(5))
    newest = out / "checkpoints" / "step-000004"
    if damage in ("no step", "no number", "deep"):
        text = {"no step": "{}", "no number": '{"step": [4]}', "deep": "[" * 100_000}[damage]
        (newest / "position.json").write_text(text)
    elif damage == "other shapes":
        tensors = read_tensors(newest / "state.safetensors")[1]
        cut = {name: value[:1] if value.ndim else value for name, value in tensors.items()}
        write_tensors(newest / "state.safetensors", cut, {})
    else:
        content = b"version https://git-lfs.github.com/spec/v1\n" if damage == "pointer" else b""
        (newest / "state.safetensors").write_bytes(content)
    assert run(_config(material), out).state == "done"
    _assert_equal(out, whole)


def test_a_checkpoint_that_names_no_threads_is_gone_on_with(material: Material, whole: Path, out: Path) -> None:
    with pytest.raises(Interrupted):
        run(_config(material), out, progress=StopAfter(3))
    position = out / "checkpoints" / "step-000002" / "position.json"
    facts = read_json(position)
    write_json(position, {name: value for name, value in facts.items() if name != "threads"})
    run(_config(material), out)
    _assert_equal(out, whole)


def test_older_checkpoints_that_a_killed_run_had_not_deleted_go(tmp_path: Path) -> None:
    """Two are kept up to where a training goes on; newer ones, which it passed over, are written anew when due."""
    for step in (1, 2, 3, 4):
        (tmp_path / f"step-{step:06d}").mkdir()
    Checkpoints(tmp_path).prune(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003", "step-000004"]


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """A million steps have a digit more than all before them; what is no checkpoint's name stays where it is."""
    checkpoints, parameter = Checkpoints(tmp_path), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    (tmp_path / "step-000001-kept").mkdir()
    for step in (999_998, 999_999, 1_000_000):
        optimizer.step()
        checkpoints.save(step, {"weight": parameter}, optimizer, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001-kept", "step-1000000", "step-999999"]
    written = parameter.detach().clone()
    parameter.data.zero_()
    assert checkpoints.restore({"weight": parameter}, optimizer)[0] == 1_000_000
    assert torch.equal(parameter, written)


def test_another_configuration_does_not_continue_it(material: Material, out: Path) -> None:
    with pytest.raises(Interrupted):
        run(_config(material), out, progress=StopAfter(3))
    with pytest.raises(OutputError, match="seed"):
        run(_config(material, seed=5), out)
    run(_config(material, seed=5, steps=1), out, force=True)
    assert len(losses(out)) == 2, "nothing of the old run is left"


@pytest.mark.slow
def test_killed_at_random_and_resumed_equals_uninterrupted(material: Material, whole: Path, out: Path) -> None:
    values = _config(material).model_dump(mode="json")
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from cdkit.execute import execute\n"
        "from cdkit.training.config import TrainConfig\n"
        "execute('train', TrainConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    import json

    command = [sys.executable, "-c", code, json.dumps(values), str(out)]
    for rows in (2, 4, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "metrics.csv").exists() and len(losses(out)) > rows:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.005)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    _assert_equal(out, whole)


def test_the_state_is_plain_tensors_and_json(material: Material, out: Path) -> None:
    from safetensors.torch import load_file

    with pytest.raises(Interrupted):
        run(_config(material), out, progress=StopAfter(3))
    folder = out / "checkpoints" / "step-000002"
    assert sorted(path.name for path in folder.iterdir()) == ["position.json", "state.safetensors"]
    tensors = load_file(folder / "state.safetensors")
    assert tensors["step.rows.text_encoder"].item() == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
