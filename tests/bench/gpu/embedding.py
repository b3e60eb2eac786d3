"""Captions per second from Parquet to embeddings at ViT-L/14's text shape, with random weights.

Measured are the whole road (embed_captions), the tower alone, one batch of it by how attention and its launches are
done, and open_clip's own encode_text, which pads every caption to 77 tokens.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cdkit.core.formatting import json_text

MEAN_WORDS, SPREAD = 10.4, 0.5
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
TINY_TEXT = {**TEXT, "width": 32, "heads": 2, "layers": 2}
# What is in a caption of the web beside plain words.
EXTRAS = ("&amp;", "–", "é", "“quoted”", "#1234", "2019", "(5)", "Zürich", "🎉", "IMG_4711.jpg", "|", "1/2")


def measure(*, tiny: bool, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of each measurement, the one that matters most first."""
    import torch

    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    text, shards, rows = (TINY_TEXT, 2, 500) if tiny else (TEXT, 4, 160_000)
    clock = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        captions = made_captions(shards * rows)
        made = time.monotonic() - clock
        write_shards(captions, Path(folder) / "captions", shards)
        spec = write_model(Path(folder) / "model", text)
        begun = time.monotonic()
        encoder = load(spec, device)
        loaded = time.monotonic() - begun
        yield "material", {"captions": len(captions), "seconds": round(made, 1), "seconds_to_load": round(loaded, 1)}
        part = captions[: 400 if tiny else 100_000]
        budgets = [256, 1024] if tiny else [65_536, 16_384, 131_072]
        rest: dict[str, Callable[[], dict[str, Any]]] = {
            "tower": lambda: tower_alone(encoder, part, budgets),
            "end_to_end": lambda: end_to_end(Path(folder), spec, device, tiny=tiny),
            "padded_encode_text": lambda: padded(Path(folder) / "model", part[: 64 if tiny else 8192], device),
            "one_batch": lambda: one_batch(encoder),
            "agreement": lambda: agreement(encoder, spec, part[:24]),
            "little_memory": lambda: little_memory(encoder, part[:40_000]),
            "tokenising": lambda: tokenising(encoder, captions[-(200 if tiny else 40_000) :]),
        }
        for name, figures in rest.items():
            if time.monotonic() - clock > seconds:
                return
            if device == "cuda" or name not in ("one_batch", "little_memory"):
                try:
                    yield name, figures()
                except Exception as error:  # the next figures are worth as much
                    yield name, {"failed": f"{type(error).__name__}: {error}"[:300]}


def made_captions(count: int, seed: int = 0) -> list[str]:
    """Captions as long as the web's (15 tokens on average, with start and end) of words as often as its words are."""
    from cdkit.embedded.tokenizer import vocabulary

    generator = np.random.default_rng(seed)
    entries = [entry.removesuffix("</w>") for entry in vocabulary()[0] if entry.endswith("</w>")]
    single = [entry for entry in entries if entry.isascii() and entry.isalpha()]
    rare = generator.permuted(np.array(single))[: 2 * (len(single) // 2)].reshape(-1, 2)
    words = np.array([*single, *("".join(pair) for pair in rare), *EXTRAS], dtype=object)
    # Zipf's law: the n-th most frequent word is met 1/n times as often (here 1/(n + 10)); one in fifty is an extra.
    weights = 1 / (np.arange(len(words)) + 10.0)
    weights[-len(EXTRAS) :] = weights.sum() / 50 / len(EXTRAS)
    edges = np.cumsum(weights) / weights.sum()
    lengths = np.clip(generator.lognormal(np.log(MEAN_WORDS), SPREAD, count).round().astype(int), 1, 70)
    drawn = words[np.searchsorted(edges, generator.random(int(lengths.sum()))).clip(max=len(words) - 1)].tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(drawn[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def write_shards(captions: list[str], folder: Path, shards: int) -> None:
    """The captions as import leaves them: shards of distinct ids in ascending order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cdkit.core.shards import part_name, schema

    folder.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(captions)), shards)):
        columns = [pa.array(rows), pa.array(captions[rows[0] : rows[-1] + 1]), pa.array(np.ones(len(rows), np.int32))]
        table = pa.table(columns, schema=schema("captions"))
        pq.write_table(table, folder / part_name(number), compression="zstd", row_group_size=1 << 16)


def write_model(folder: Path, text: dict[str, int]) -> str:
    """A CLIP with random weights in open_clip's layout, in transformers' where open_clip cannot be imported."""
    import torch

    torch.manual_seed(0)
    try:
        import open_clip
    except ImportError:
        return write_transformers_model(folder, text)
    from safetensors.torch import save_file

    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
    config = {"embed_dim": text["width"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json_text({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    os.rename(folder / "model.safetensors", folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def write_transformers_model(folder: Path, text: dict[str, int]) -> str:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from cdkit.embedded.tokenizer import END_ID, START_ID, load_tokenizer

    config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        projection_dim=text["width"],
        hidden_act="quick_gelu",
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return f"transformers:{folder}"


class Clock:
    """Progress that remembers when how many captions were done."""

    def __init__(self) -> None:
        self.done: list[tuple[float, float]] = []
        self.notes: list[str] = []

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Clock]:
        yield self

    def advance(self, amount: float = 1) -> None:
        self.done.append((time.monotonic(), amount + (self.done[-1][1] if self.done else 0)))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def steady(self) -> float:
        """Captions per second after the first quarter."""
        begun = next((entry for entry in self.done if entry[1] >= self.done[-1][1] / 4), self.done[0])
        seconds = self.done[-1][0] - begun[0]
        return (self.done[-1][1] - begun[1]) / seconds if seconds else 0.0


def end_to_end(folder: Path, spec: str, device: str, *, tiny: bool) -> dict[str, Any]:
    """embed_captions on every shard, with all that it starts and loads."""
    from cdkit.core.machine import cpu_count
    from cdkit.core.protocols import Context
    from cdkit.core.storage import Folder
    from cdkit.engines import create_engine
    from cdkit.index import token_feed
    from cdkit.index.embedding import embed_captions

    clock, worth, patience = Clock(), token_feed.WORTH_PROCESSES, token_feed.PATIENCE
    engine = create_engine("local", max(2, cpu_count()))
    # So few captions as in a tiny run are usually not worth a process.
    token_feed.WORTH_PROCESSES = 0 if tiny else worth
    token_feed.PATIENCE = patience if tiny else 20.0
    faulthandler.dump_traceback_later(30)
    begun = time.monotonic()
    try:
        dataset = embed_captions(
            folder / "captions", Folder(folder / "embeddings"), spec, context=Context(engine, clock), device=device
        )
    finally:
        token_feed.WORTH_PROCESSES, token_feed.PATIENCE = worth, patience
        faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - begun
    count, tokens = dataset.counts.kept, dataset.details["tokens"]
    return {
        "captions": count,
        "mean_tokens": round(tokens / count, 2),
        "seconds": round(seconds, 2),
        "seconds_to_first": round(clock.done[0][0] - begun, 2),
        "captions_per_second": round(count / seconds),
        "captions_per_second_once_running": round(clock.steady()),
        "tokens_per_second_once_running": round(clock.steady() * tokens / count),
        "processes": max(int(tiny), token_feed.tokeniser_count(count, engine.workers, on_gpu=device != "cpu")),
        "precision": dataset.details["encoder"]["precision"],
        "precision_error": dataset.details["encoder"]["precision_error"],
        "notes": clock.notes,
    }


def load(spec: str, device: str) -> Any:
    from cdkit.encoders import load_text_encoder

    return load_text_encoder(spec, device=device)


def seconds_of(run: Callable[[], object], device: str, *, least: float = 0.3) -> float:
    """Seconds of one call, the best of some after one that warms up."""
    import torch

    best, begun = float("inf"), time.monotonic()
    for attempt in range(20):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if attempt else best
        if attempt and time.monotonic() - begun > least:
            break
    return best


def tower_alone(encoder: Any, captions: list[str], budgets: list[int]) -> dict[str, Any]:
    """Tokens that are ready to embeddings in host memory, by tokens of a batch."""
    from dataclasses import replace

    tokens = encoder.tokenize(captions)
    planned, figures = encoder.batching, {}
    for budget in budgets:
        encoder.batching = replace(planned, tokens=budget, least_tokens=min(budget, planned.least_tokens))
        encoder.batch_tokens = budget
        took = seconds_of(lambda: next(encoder.encode_windows([tokens], half=True)), encoder.device.type)
        figures[f"captions_per_second_{budget}"] = round(len(captions) / took)
        figures[f"tokens_per_second_{budget}"] = round(len(tokens.ids) / took)
    encoder.batching, encoder.batch_tokens = planned, planned.tokens
    return figures


def padded(folder: Path, captions: list[str], device: str) -> dict[str, Any]:
    """open_clip's encode_text in fp16 on a GPU, tokens ready; the best of several batch sizes."""
    import open_clip
    import torch

    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval().to(device)
    model = model.half() if device == "cuda" else model
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(captions).to(device)
    figures = {}
    for batch in (32,) if device == "cpu" else (256, 1024, 4096):

        def run(batch: int = batch) -> None:
            with torch.inference_mode():
                for start in range(0, len(tokens), batch):
                    model.encode_text(tokens[start : start + batch], normalize=True)

        figures[f"captions_per_second_batch_{batch}"] = round(len(captions) / seconds_of(run, device))
    return figures


def agreement(encoder: Any, spec: str, captions: list[str]) -> dict[str, Any]:
    """The largest difference from the same tower in fp32 at its full context on the CPU."""
    import torch
    import torch.nn.functional as F

    from cdkit.encoders import parse_spec

    library, location = parse_spec(spec)
    if library == "open_clip":
        from cdkit.encoders.open_clip import load_tower
    else:
        from cdkit.encoders.transformers import load_tower
    dirty = [*captions, "", "x" * 10_000, "&lt;b&gt; “Café” 🎉", "<end_of_text> a dog"]
    tower = load_tower(location)
    tokens = tower.tokenizer(dirty)
    table = torch.from_numpy(tokens.padded(np.arange(len(dirty)), tower.pad_id, tower.context_length)).long()
    with torch.inference_mode():
        expected = F.normalize(tower.padded(table), dim=-1).numpy()
    worst = float(np.abs(encoder.encode(dirty) - expected).max())
    allowed = 1e-5 if encoder.precision == "fp32" else 1e-3
    return {"largest_difference": worst, "allowed": allowed, "holds": worst < allowed}


def one_batch(encoder: Any) -> dict[str, Any]:
    """Milliseconds of one batch of 65,536 tokens: as it is, captured as a CUDA graph, and by attention kernel."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    figures: dict[str, Any] = {}
    tower = encoder._trimmed
    with torch.inference_mode():
        for length in (8, 16, 32):
            table = torch.randint(1000, 40_000, (65_536 // length, length), dtype=torch.int32, device="cuda")
            figures[f"eager_{length}"] = round(1000 * seconds_of(partial(tower, table), "cuda"), 2)
            kernels = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
            for name, kernel in {**kernels, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}.items():
                try:
                    with sdpa_kernel([kernel, SDPBackend.MATH] if name != "math" else kernel):
                        took = seconds_of(partial(tower, table), "cuda", least=0.2)
                    figures[f"{name}_{length}"] = round(1000 * took, 2)
                except RuntimeError as error:
                    figures[f"{name}_{length}"] = str(error).split("\n")[0][:80]
        for rows in (4096, 64):
            table = torch.randint(1000, 40_000, (rows, 16), dtype=torch.int32, device="cuda")
            figures[f"eager_{rows}x16"] = round(1000 * seconds_of(partial(tower, table), "cuda"), 3)
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    tower(table)
                figures[f"graph_{rows}x16"] = round(1000 * seconds_of(graph.replay, "cuda"), 3)
            except RuntimeError as error:
                figures[f"graph_{rows}x16"] = str(error).split("\n")[0][:80]
        normed = torch.randn(65_536, 768, dtype=torch.float16, device="cuda")
        block = tower.blocks[0]
        figures["mlp"] = round(1000 * seconds_of(lambda: block.mlp(normed), "cuda"), 3)
        figures["qkv"] = round(1000 * seconds_of(lambda: block.qkv(normed), "cuda"), 3)
        figures["norm"] = round(1000 * seconds_of(lambda: block.norm_1(normed), "cuda"), 3)
    return figures


def little_memory(encoder: Any, captions: list[str]) -> dict[str, Any]:
    """A limit on GPU memory that the usual batches do not fit: smaller ones, and the same embeddings."""
    import torch

    before = encoder.encode(captions)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (600 << 20)) / total)
        after = encoder.encode(captions)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    figures = {"batch_tokens": encoder.batch_tokens, "largest_difference": float(np.abs(after - before).max())}
    encoder.batch_tokens = encoder.batching.tokens
    return figures


def tokenising(encoder: Any, captions: list[str]) -> dict[str, Any]:
    """Captions per second of one thread, most words known from the captions before."""
    begun = time.perf_counter()
    tokens = encoder.tokenize(captions)
    took = time.perf_counter() - begun
    return {"captions_per_second_one_thread": round(len(captions) / took), "mean_tokens": float(tokens.lengths.mean())}
