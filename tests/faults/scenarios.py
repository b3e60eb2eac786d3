"""Small runs of everything that writes, on material made once: what is run, and what it must leave."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from cdkit.core.config import parse_config
from cdkit.core.errors import CdkitError
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME
from cdkit.core.protocols import Context, SilentProgress
from cdkit.core.storage import LOCK_NAME
from cdkit.embedded.pool import write_pool
from cdkit.engines.local import LocalEngine
from cdkit.execute import execute
from cdkit.index import layout
from cdkit.index.caption_index import INDEX_NAME
from cdkit.merging.config import WayName
from cdkit.pictures.trainers import TRAINERS
from cdkit.stages import STAGES
from tests.cli.running import Ran, ran

Facts = dict[str, Any]
# Parts of manifests and results that hold times, sizes of processes and the like.
CLOCKS = frozenset({"run", "seconds", "started", "ended", "seconds_per_step", "peak_process_bytes", "clocks"})
# What holds times and places beside what it tells: it must be there.
PRESENT = (".html", ".md", ".svg")
ROWS, MANY_ROWS = 60, 1000
COMPRESSED = {"exact_below": 1, "bytes_per_caption": 4}


@dataclass(frozen=True)
class Scenario:
    """One command in small. prepare: puts what it changes into the folder before it; run: the command; again: what is
    said after it was killed, where that is another one."""

    run: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda out: None
    facts: Callable[[Path], Facts] | None = None
    again: Callable[[Path], object] | None = None

    def go_on(self, out: Path) -> object:
        return (self.again or self.run)(out)

    def result(self, out: Path) -> Facts:
        return (self.facts or folder_facts)(out)


def folder_facts(out: Path) -> Facts:
    """Every file of a result: its bytes, but for clocks. What says that it was begun may stay beside the manifest."""
    paths = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in (LOCK_NAME, STARTED_NAME))
    return {str(path.relative_to(out)): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "metrics.csv":
        with path.open(encoding="utf-8", newline="") as handle:
            return [{key: row[key] for key in row if key not in CLOCKS} for row in csv.DictReader(handle)]
    if path.suffix in PRESENT:
        return path.stat().st_size > 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [_without_clocks(item) for item in value] if isinstance(value, list) else value


def stage(name: str, **values: Any) -> Scenario:
    """One stage into a new folder."""
    config = parse_config(STAGES[name].config_class(), values)
    return Scenario(lambda out: execute(name, config, out))


class CommandFailedError(CdkitError):
    """A command line that ended with another exit code than 0."""

    def __init__(self, done: Ran) -> None:
        super().__init__(done.err, hint=done.err if "Hint:" in done.err or done.code == 130 else "")
        self.exit_code = done.code


def command(*words: object) -> Callable[[Path], None]:
    """A command line; an Inside in it is the folder, or a place in it."""

    def run(out: Path) -> None:
        done = ran([out / word.name if isinstance(word, Inside) else word for word in words])
        if done.code:
            raise CommandFailedError(done)

    return run


@dataclass(frozen=True)
class Inside:
    """A place in the folder that a command writes; no name: the folder."""

    name: str = ""


@contextmanager
def few_training_points() -> Iterator[None]:
    """Let an index of some hundred captions be a compressed one."""
    least = layout.LEAST_POINTS_PER_LIST
    layout.LEAST_POINTS_PER_LIST = 1
    try:
        yield
    finally:
        layout.LEAST_POINTS_PER_LIST = least


def compressed_index(**values: Any) -> Scenario:
    built = stage("index", **values)

    def build(out: Path) -> None:
        with few_training_points():
            built.run(out)

    return Scenario(build)


def context() -> Context:
    return Context(LocalEngine(1), SilentProgress())


def write_captions(path: Path, first: int, rows: int) -> str:
    """A table of captions of the embedded world: some twice, some without words, some unsafe, some unreadable."""
    lines = ["TEXT,URL,NSFW"]
    for number in range(first, first + rows):
        text = f"a photo of a red star number {number // 2}" if number % 9 else ""
        lines.append(
            f"{text},http://host-{number % 3}.example/{number}.jpg,{'NSFW' if number % 7 == 3 else 'UNLIKELY'}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@dataclass(frozen=True)
class Material:
    """What the small runs take in, made once by the stages themselves."""

    root: Path

    def path(self, name: str) -> str:
        return str(self.root / name)

    def make(self) -> None:
        self.root.mkdir(parents=True)
        captions = write_captions(self.root / "captions.csv", 0, ROWS)
        write_pool(self.root / "pool", rows=4 * ROWS)
        _made("index", self.root / "index", captions=[self.path("pool")], workers=1, threads=1)
        write_captions(self.root / "more.csv", ROWS - 10, 20)
        (self.root / "gone.txt").write_text("a photo of a red star number 4\n")
        shared = {"workers": 1, "threads": 1}
        _made("index", self.root / "exact", captions=[captions], keep_embeddings=True, **shared)
        many = write_captions(self.root / "many.csv", 0, MANY_ROWS)
        with few_training_points():
            _made("index", self.root / "compressed", captions=[many], **COMPRESSED, **shared)
        _made("retrieve", self.root / "set", **self.retrieved())
        for name, word in (("striped-star", "star"), ("pink-heart", "heart")):
            _made("train", self.root / f"{word}-tuned", **self.trained(word, name, steps=1))
        _made("sample", self.root / "samples", **self.sampled())
        scored = {"concepts": {"star": "embedded:striped-star"}, "resamples": 100, "device": "cpu", "threads": 1}
        _made("evaluate", self.root / "scores", samples=self.path("samples"), **scored)
        _made("export", self.root / "foreign", delta=self.path("star-tuned"), to="kohya-lora", threads=1)
        _made("sample", self.root / "others", **{**self.sampled(), "steps": 2})
        self._write_papers(captions)

    def _write_papers(self, captions: str) -> None:
        """A pipeline, and a benchmark of one concept."""
        steps = {
            "captions": {"run": "import", "captions": [captions], "workers": 1},
            "small": {"run": "delta-compress", "delta": self.path("star-tuned"), "rank": 1},
        }
        (self.root / "small.yaml").write_text(yaml.safe_dump({"name": "small", "stages": steps}))
        (self.root / "prompts.txt").write_text("a {} on the grass\n")
        names = {"instance_data_dir": "dog", "prompt_filename": "prompts.txt"}
        concept = {"class_prompt": "dog", "instance_prompt": "photo of a <new1> dog", **names}
        (self.root / "dataset.json").write_text(json.dumps([concept]))

    def retrieved(self) -> Mapping[str, Any]:
        return {
            **{"index": self.path("index"), "images": "embedded", "prompts": ["a photo of a star"], "count": 3},
            **{
                "also_write": ["imagefolder", "webdataset"],
                "workers": 1,
                "threads": 1,
                "max_captions": 12,
                "min_similarity": 0.6,
            },
        }

    def trained(self, word: str, photos: str, **values: Any) -> Mapping[str, Any]:
        settings = {"steps": 4, "batch_size": 1, "checkpoint_every": 1, "device": "cpu", "threads": 1, **values}
        return {"concepts": {word: f"embedded:{photos}"}, **settings}

    def sampled(self) -> Mapping[str, Any]:
        settings = {"seeds": 2, "steps": 1, "batch_size": 1, "device": "cpu", "threads": 1}
        return {"deltas": [self.path("star-tuned")], "prompts": ["a photo of a <new1> star", "a star"], **settings}


def _made(name: str, out: Path, **values: Any) -> None:
    execute(name, parse_config(STAGES[name].config_class(), values), out)


def copied(source: Path) -> Callable[[Path], object]:
    return lambda out: shutil.copytree(source, out)


def manifest_of(out: Path) -> Facts:
    values: Facts = _without_clocks(json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8")))
    return values


def index_facts(out: Path) -> Facts:
    """What an index says and finds: its readers' rows, its counts; how often a change was said does not count."""
    from cdkit.index.caption_index import open_index
    from cdkit.index.records import iterate_captions, iterate_image_rows, read_tombstones
    from cdkit.index.search import search

    open_index(out)
    captions = [row for table in iterate_captions(out) for row in table.to_pylist()]
    rows = [row for table in iterate_image_rows(out) for row in table.to_pylist()]
    removed = read_tombstones(out)
    details = manifest_of(out)["details"]
    [result] = search(out, ["a photo of a red star number 7"], min_similarity=-1, limit=1000)
    assert not [name for name in ("pending", "adding") if (out / name).exists()]
    return {
        "captions": sorted(map(str, captions)),
        "rows": sorted(map(str, rows)),
        "counts": (details["captions"], details["rows"], details.get("removed"), len(details.get("additions", []))),
        "vectors": details["index"]["vectors"],
        "removed": removed.caption_ids.tolist(),
        "found": sorted((match.caption_id, round(match.similarity, 4)) for match in result.results),
        "index": hashlib.sha256((out / INDEX_NAME).read_bytes()).hexdigest(),
    }


def scenarios(material: Material) -> dict[str, Scenario]:
    """Every command that writes, by the name of what it does."""
    captions, shared = [material.path("captions.csv")], {"workers": 1, "threads": 1}
    star, heart = material.path("star-tuned"), material.path("heart-tuned")
    model = {"device": "cpu", "threads": 1}
    photos = {"photos": "embedded:striped-star", "class_word": "star"}
    drawn = {"prompts": ["a photo of a star"], "count": 2, "steps": 1, "batch_size": 1}
    samples = {"samples": material.path("samples"), "concepts": {"star": "embedded:striped-star"}}
    stages = {
        "import": stage("import", captions=captions, **shared),
        "embed": stage("embed", captions=captions, **shared),
        "index, exact": stage("index", captions=captions, **shared),
        "index, compressed": compressed_index(captions=[material.path("many.csv")], **COMPRESSED, **shared),
        "retrieve": stage("retrieve", **material.retrieved()),
        "class-images": stage("class-images", also_write=["kohya"], **drawn, **photos, **model),
        "token-counts": stage("token-counts", index=material.path("index"), **shared),
        "tokens": stage("tokens", index=material.path("index"), min_count=1, max_count=2, **shared),
        "train": stage("train", **material.trained("star", "striped-star", sample_every=2)),
        "train, class images": stage(
            "train",
            **material.trained("star", "striped-star", steps=1, keep="generated", regularization_count=2),
        ),
        "sample": stage("sample", **material.sampled()),
        "evaluate": stage("evaluate", **samples, resamples=100, **model),
        "weight-change": stage("weight-change", tuned=star, device="cpu"),
        "attention": stage("attention", deltas=[star], prompt="a photo of a <new1> star", steps=1, **model),
        "delta-compress": stage("delta-compress", delta=star, rank=1, threads=1),
        "delta-import": stage("delta-import", files=[material.path("foreign")], base="embedded"),
        "compare": stage("compare", single={"ours": [material.path("scores")]}, resamples=100),
        "dataset": stage("dataset", folder=material.path("set"), to=["imagefolder", "webdataset"]),
        "report": stage("report", run_folder=material.path("")),
    }
    for kind in ("diffusers-lora", "kohya-lora", "webui-diff", "textual-inversion", "diffusers-pipeline"):
        stages[f"export, {kind}"] = stage("export", delta=star, to=kind, threads=1)
    for way in get_args(WayName):
        stages[f"merge, {way}"] = stage(
            "merge", deltas=[star, heart], index=material.path("index"), captions_count=120, way=way, **model
        )
    stages["dataset, trainers"] = stage("dataset", folder=material.path("set"), to=list(TRAINERS), **photos)
    for kind in ("exact", "compressed"):
        stages |= {f"{name}, {kind}": scenario for name, scenario in index_changes(material, kind).items()}
    stages |= made_again(material) | commands(material)
    return {**stages, "review decisions": review(material)}


def commands(material: Material) -> dict[str, Scenario]:
    """Commands that write and are no stages."""
    study = ("preference", "page", material.root, "--methods", "samples", "--methods", "others", "--pairs", "2")
    drafted = ("init", "--yes", "--photos", "embedded:striped-star", "--word", "star", "--captions", "none")
    benchmark = ("inspect", "benchmark", material.path("dataset.json"), "dog")
    return {
        "run": Scenario(command("run", material.path("small.yaml"), "--threads", 1, "--out", Inside())),
        "init": Scenario(command(*drafted, "--force", "--out", Inside("star.yaml"))),
        "pipeline copy": Scenario(command("pipeline", "copy", "quickstart", Inside("mine.yaml"), "--force")),
        "preference page": Scenario(command(*study, "--out", Inside())),
        "inspect benchmark": Scenario(command(*benchmark, "--out", Inside("prompts.txt"))),
    }


def made_again(material: Material) -> dict[str, Scenario]:
    """With --force in the place of the same result and of another one; a plain command goes on with the same."""
    same, other = {"resolution": 64, **material.sampled()}, {**material.sampled(), "resolution": 64, "steps": 2}
    config = parse_config(STAGES["sample"].config_class(), same)

    def forced(out: Path) -> None:
        execute("sample", config, out, force=True)

    return {
        "forced, same": Scenario(forced, stage("sample", **same).run, again=stage("sample", **same).run),
        "forced, other": Scenario(forced, stage("sample", **other).run),
    }


def index_changes(material: Material, kind: str) -> dict[str, Scenario]:
    """add, remove and compact of one kind of index."""
    from cdkit.captions.config import ImportConfig
    from cdkit.index.changes.add import add_captions
    from cdkit.index.changes.compact import compact
    from cdkit.index.changes.remove import remove
    from cdkit.inputs import resolve_inputs

    config = ImportConfig(captions=[material.path("more.csv")], workers=1, threads=1)
    gone = ["a photo of a red star number 4", "a photo of a red star number 8"]

    def add(out: Path) -> object:
        return add_captions(out, config, resolve_inputs(config), context())

    def without_some(out: Path) -> None:
        shutil.copytree(material.path(kind), out)
        remove(out, captions=gone)

    whole = copied(Path(material.path(kind)))
    return {
        "add": Scenario(add, whole, index_facts),
        "remove": Scenario(lambda out: remove(out, captions=gone), whole, index_facts),
        "compact": Scenario(compact, without_some, index_facts),
    }


def review(material: Material) -> Scenario:
    """Three decisions on a page, each answered: what was answered must be there."""
    from cdkit.retrieval.decisions import DECISIONS_NAME, read_decisions
    from cdkit.serving.review import DecisionFile
    from cdkit.serving.review_set import read_review_set

    def decide(out: Path) -> None:
        pictures = [picture.decision() for picture in read_review_set(Path(material.path("set"))).pictures]
        file = DecisionFile(out / DECISIONS_NAME)
        for picture in pictures:
            file.change(lambda log, now, one=picture: log.decide("reject", [one], "2026-01-02T03:04:05"))

    def facts(out: Path) -> Facts:
        log = read_decisions(out / DECISIONS_NAME)
        return {"rejected": sorted(log.rejected), "decisions": len(log.log)}

    return Scenario(decide, lambda out: out.mkdir(), facts)


NAMES = tuple(scenarios(Material(Path("unmade"))))
