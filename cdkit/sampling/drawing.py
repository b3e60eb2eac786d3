"""Drawing samples: the prompts, what of them the text encoder does not see, and every prompt with every seed."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.machine import choose_device
from cdkit.core.protocols import Context
from cdkit.core.storage import atomic_path
from cdkit.core.text import MODIFIER_TOKEN, same_word, whole_words
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model, pipeline_resolution
from cdkit.deltas.delta import delta_tokens, load_delta
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import family_of
from cdkit.deltas.pipeline_folder import library_errors, quiet
from cdkit.deltas.text_features import text_towers
from cdkit.pictures.grid import Block, Cell
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.schedulers import is_flow, make_scheduler
from cdkit.tokens.sample import captions_folder, sample_rows

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

# Of so many captions for each that is wanted, some have none of the words that are not.
CAPTIONS_EACH = 16


def gather_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """The prompts given one by one, then those of a text file, one per line; blank lines and repeats are dropped.

    Raises InputError for an unreadable file and ConfigError when nothing is left.
    """
    lines = list(prompts)
    if file is not None:
        try:
            lines += Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file} cannot be read: {error}", hint="Give a UTF-8 text file, one prompt a line."
            ) from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ConfigError("There is no prompt.", hint="Give --prompt TEXT, or --prompts FILE with one prompt a line.")
    return found


def caption_prompts(index: Path, number: int, without: Sequence[str], context: Context) -> list[str]:
    """Captions of an index as prompts: the same ones every time, none with one of the words `without`.

    A word stands for its plural, too. Raises InputError when there are fewer than `number`.
    """
    forms = [form for word in without for form in (word, f"{word}s", f"{word}es")]
    drawn = sample_rows(captions_folder(index), CAPTIONS_EACH * number, 0, context).captions.to_pylist()
    fit = [caption for caption in drawn if not (forms and whole_words(*forms).search(caption))]
    if len(fit) < number:
        raise InputError(
            f"Of {len(drawn):,} captions drawn from {index}, only {len(fit)} have none of the words "
            f"{', '.join(without)}; {number} are wanted.",
            hint="Leave words out (--without), or ask for fewer (--captions-count).",
        )
    # They come in the index's order, in which neighbours may be alike.
    return sorted(fit, key=lambda caption: hashlib.sha256(caption.encode()).digest())[:number]


def too_long(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompts whose end the text encoder will not see: longer than its context with start and end tokens."""
    limit = tokenizer.model_max_length
    return [prompt for prompt in prompts if len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > limit]


def words_beyond(prompt: str, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Those of the words that stand in a prompt, but only behind what the text encoder reads of it.

    The tokenizer knows the modifier tokens among them.
    """
    limit = tokenizer.model_max_length
    beyond = []
    for word in words:
        found = whole_words(word).search(prompt)
        # Up to the word's end, with start and end tokens: the last place is the end token's.
        if found and len(tokenizer(prompt[: found.end()], truncation=False, verbose=False).input_ids) > limit:
            beyond.append(word)
    return beyond


def notes_on_prompts(prompts: Sequence[str], tokens: Sequence[str], pipeline: DiffusionPipeline) -> list[str]:
    """What the user should know before prompts are drawn: words nobody knows, and what the text encoder cuts off.

    tokens: the modifier tokens that deltas brought. A base that a delta was baked into knows its words, too.
    """
    towers = text_towers(pipeline)
    known = list(dict.fromkeys([*tokens, *towers[0].tokenizer.get_added_vocab()]))
    notes = [
        f"No delta brings the word {word}: the prompt is read without it. Give --delta."
        for word in unknown_tokens(prompts, known)
    ]
    notes += [
        f"{word} is in other letters here, which {tower.name} does not take for it: {prompt[:60]}…"
        for word in known
        for tower in towers
        for prompt in misspelt(prompts, word, tower.tokenizer, family_of(pipeline))
    ]
    for prompt in prompts:
        tokenizers = [tower.tokenizer for tower in towers]
        beyond = [
            word
            for tokenizer in tokenizers
            for word in words_beyond(*_written_out(pipeline, tokenizer, prompt, known), tokenizer)
        ]
        if beyond:
            notes.append(
                f"{beyond[0].split()[0]} stands behind the {tokenizers[0].model_max_length} tokens that the text "
                f"encoder reads, and the prompt is drawn without it: {prompt[:60]}…"
            )
        elif any(too_long([prompt], tokenizer) for tokenizer in tokenizers):
            notes.append(f"Longer than the text encoder's context, its end is not seen: {prompt[:60]}…")
    return notes


def misspelt(prompts: Sequence[str], word: str, tokenizer: PreTrainedTokenizerBase, family: Family) -> list[str]:
    """The prompts with a modifier token in letters that a tokenizer does not take for it: T5's and Qwen's know one."""
    token = tokenizer.convert_tokens_to_ids(word)
    spelt = {prompt: whole_words(word).findall(prompt) for prompt in prompts}
    return [
        prompt
        for prompt, forms in spelt.items()
        for form in set(forms) - {word}
        if token not in tokenizer(family.written(form), add_special_tokens=False, verbose=False).input_ids
    ]


def _written_out(
    pipeline: DiffusionPipeline, tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]
) -> tuple[str, list[str]]:
    """A prompt, and the words that stand in it, with a token of several rows as the entries that diffusers reads."""
    standing = [word for word in words if whole_words(word).search(prompt)]
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    if convert is None:
        return prompt, standing
    # It counts a long prompt's tokens aloud; what is cut off is said here.
    with quiet():
        return convert(prompt, tokenizer), [convert(word, tokenizer) for word in standing]


def unknown_tokens(prompts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Words in angle brackets that no delta brings: the text encoder would take them for punctuation and letters."""
    used = dict.fromkeys(word for prompt in prompts for word in MODIFIER_TOKEN.findall(prompt))
    spelt = {same_word(word) for word in known}
    return [word for word in used if same_word(word) not in spelt]


@dataclass(frozen=True)
class Sample:
    """One image to draw: its prompt, seed and file name."""

    prompt: str
    seed: int
    name: str


def plan_samples(prompts: Sequence[str], config: SampleConfig) -> list[Sample]:
    """Every prompt with every seed, prompts first."""
    return [
        Sample(prompt, seed, f"{position:04d}-{seed}.png")
        for position, prompt in enumerate(prompts)
        for seed in range(config.first_seed, config.first_seed + config.seeds)
    ]


def grid_blocks(samples: Sequence[Sample], images: Path) -> list[Block]:
    """The samples as a grid shows them: a block per prompt, the seed under each image."""
    blocks: dict[str, list[Cell]] = {}
    for entry in samples:
        blocks.setdefault(entry.prompt, []).append(Cell(images / entry.name, (f"seed {entry.seed}",)))
    return [Block(prompt, cells) for prompt, cells in blocks.items()]


def draw_missing(
    config: SampleConfig, prompts: Sequence[str], missing: Sequence[Sample], images: Path, context: Context
) -> float:
    """Load the model with its deltas and draw `missing` into a folder, under their names; seconds of drawing."""
    device = choose_device(config.device)
    # Damaged deltas are found before the model is loaded, which takes long.
    deltas = [load_delta(path) for path in config.deltas]
    pipeline = load_base_model(config.base, device=device, precision=config.precision)
    pipeline_resolution(pipeline, config.resolution)
    apply_deltas(pipeline, deltas, scale=config.scale, note=context.progress.note)
    for note in notes_on_prompts(prompts, delta_tokens(config.deltas), pipeline):
        context.progress.note(note)
    scheduler, steps, _ = config.drawn_with()
    if is_flow(pipeline.scheduler) and "scheduler" in config.model_fields_set:
        context.progress.note(f"This model is drawn with its own scheduler: --scheduler {scheduler} does not count.")
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler)
    batches, clock = range(0, len(missing), config.batch_size), time.monotonic()
    with context.progress.task("sampling", len(batches) * steps, unit="steps") as task:
        for start in batches:
            batch = missing[start : start + config.batch_size]
            drawn = draw(pipeline, batch, config, on_step=task.advance)
            for entry, image in zip(batch, drawn, strict=True):
                with atomic_path(images / entry.name) as temporary:
                    image.save(temporary, format="PNG", pnginfo=_caption(entry))
    return time.monotonic() - clock


def draw(
    pipeline: DiffusionPipeline, batch: Sequence[Sample], config: SampleConfig, *, on_step: Any
) -> list[Image.Image]:
    """Draw one batch; all of an image's noise comes from its own seed, on the CPU, whatever the device."""
    import numpy as np
    import torch

    _, steps, guidance = config.drawn_with()
    # SDXL has zeros, not the features of an empty text, where there is no negative prompt.
    negative = [config.negative_prompt] * len(batch) if config.negative_prompt else None
    options = family_of(pipeline).draw_options(guidance, negative)
    taken = inspect.signature(pipeline.__call__).parameters
    if config.resolution is not None:
        options |= {"width": config.resolution, "height": config.resolution}
    if "eta" in taken:
        options["eta"] = config.eta

    stopped: list[Exception] = []

    def stepped(_: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            on_step(1)
        except Exception as error:
            stopped.append(error)  # not the model's fault
            raise
        return values

    if "callback_on_step_end" in taken:
        options["callback_on_step_end"] = stepped
    else:
        options["callback"] = lambda step, timestep, latents: stepped(pipeline, step, timestep, {})
    # Of a prompt that is cut, and of an instruction longer than a prompt, libraries warn; what matters is noted above.
    with torch.inference_mode(), quiet(), library_errors("The base model", "drawn with", passed=stopped):
        result = pipeline(
            prompt=[entry.prompt for entry in batch],
            num_inference_steps=steps,
            generator=[torch.Generator("cpu").manual_seed(entry.seed) for entry in batch],
            output_type="np",
            **options,
        )
    if not np.isfinite(result.images).all():
        raise InputError(
            f"The base model {config.base!r} drew NaN for seed {batch[0].seed}.",
            hint="Its weights are broken, or fp16 overflows: try --precision no or bf16.",
        )
    return list(pipeline.numpy_to_pil(result.images))


def _caption(entry: Sample) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("prompt", entry.prompt)
    info.add_text("seed", str(entry.seed))
    return info
