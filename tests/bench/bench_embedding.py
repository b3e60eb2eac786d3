"""The embed stage against the one of another checkout: the same real captions, from Parquet to shards of embeddings.

`python -m tests.bench.bench_embedding --against CHECKOUT`: ViT-L/14's text tower (openai's activation) with random
weights, fp32, both sides in processes of their own that take turns. Loading the model is not counted. Seconds of CPU
are given beside those of the clock, because other work on the machine lengthens only the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from cdkit.core.formatting import json_text
from tests.bench.bench_text_encoding import SHORT_CAPTIONS
from tests.support import material

# "quarter" of the layers: the same ratio in a quarter of the time.
SHAPES = {"ViT-L-14": (768, 12, 12), "ViT-L-14-quarter": (768, 12, 3), "ViT-B-32": (512, 8, 12), "tiny": (32, 2, 2)}
TOLERANCE = 1e-3
SIDE = """
import sys, time
from pathlib import Path
import torch
from cdkit.core.formatting import json_text
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.encoders import load_text_encoder
from cdkit.engines import create_engine
from cdkit.index import embedding
work, spec, out, threads = sys.argv[1:]
if __name__ == "__main__":
    torch.set_num_threads(int(threads))
    encoder = load_text_encoder(spec, device="cpu")
    for module in [embedding, sys.modules.get("cdkit.index.embedding_pipeline", embedding)]:
        def loaded(*_): return encoder
        loaded.cache_clear = lambda: None
        module.worker_encoder = loaded
    wall, cpu = time.perf_counter(), time.process_time()
    embedding.embed_captions(Path(work, "captions"), Folder(Path(out)), spec, context=Context(create_engine("local", int(threads))), device="cpu")
    print(json_text({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="another checkout's folder")
    parser.add_argument("--captions", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="ViT-L-14")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json_text(compare(Path(folder), options)))


def compare(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Median ratios of both clocks; AssertionError when the embeddings differ by more than fp16 rounding."""
    from tests.bench.gpu.embedding import write_model, write_shards

    width, heads, layers = SHAPES[options.shape]
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    spec = write_model(work / "model", text)
    write_shards(real_captions(options.captions), work / "captions", max(1, options.captions // 16_384))
    times: dict[str, list[dict[str, float]]] = {"new": [], "old": []}
    for number in range(options.rounds):
        for side in ("new", "old") if number % 2 == 0 else ("old", "new"):
            times[side].append(run(work, spec, side, options, work / f"{side}-{number}"))
            print(side, times[side][-1], file=sys.stderr, flush=True)
    difference = float(np.abs(vectors(work / "new-0") - vectors(work / "old-0")).max())
    assert difference < TOLERANCE, f"the two sides differ by {difference}"
    ratios = {
        clock: [old[clock] / new[clock] for old, new in zip(times["old"], times["new"], strict=True)]
        for clock in ("wall", "cpu")
    }
    return {
        "shape": options.shape,
        "captions": options.captions,
        "threads": options.threads,
        "speedup": round(median(ratios["wall"]), 3),
        "speedup_in_cpu_seconds": round(median(ratios["cpu"]), 3),
        "captions_per_second": round(options.captions / median(new["wall"] for new in times["new"]), 1),
        "captions_per_cpu_second": round(options.captions / median(new["cpu"] for new in times["new"]), 1),
        "largest_difference": difference,
    }


def run(work: Path, spec: str, side: str, options: argparse.Namespace, out: Path) -> dict[str, float]:
    """One side in a process of its own, run from the checkout it is of."""
    checkout = options.against if side == "old" else Path(__file__).parents[2]
    script = work / "side.py"
    script.write_text(SIDE)
    command = [sys.executable, str(script), str(work), spec, str(out), str(options.threads)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def real_captions(count: int) -> list[str]:
    """Distinct captions of the four short files, as many of each, in the random order that ids give them."""
    import pyarrow.parquet as pq

    generator, captions = np.random.default_rng(0), []
    for name in SHORT_CAPTIONS:
        table = pq.read_table(material.path(f"captions/{name}.parquet"), columns=["TEXT"])
        distinct = sorted({text for text in table["TEXT"].to_pylist() if text})
        captions += [distinct[row] for row in generator.choice(len(distinct), count // 4, replace=False)]
    return [captions[row] for row in generator.permutation(len(captions))]


def vectors(folder: Path) -> np.ndarray:
    """All embeddings of a folder of shards, float32 [n, dimension]."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(path)["embedding"] for path in sorted(folder.glob("part-*.parquet"))]
    return np.concatenate([np.stack(table.to_numpy()).astype(np.float32) for table in tables])


if __name__ == "__main__":
    main()
