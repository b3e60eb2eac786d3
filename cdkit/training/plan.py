"""What a training will use, gathered and checked before the base model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import command_line
from cdkit.deltas.apply import check_written, extended_tokenizer
from cdkit.deltas.delta import delta_tokens
from cdkit.deltas.families.stable_diffusion import CLIP_ENCODERS
from cdkit.deltas.methods import METHODS, Method, Recipe
from cdkit.pictures.picture import Picture
from cdkit.sampling.drawing import misspelt, words_beyond
from cdkit.tokens.modifiers import Pick, read_picks, resolve_initializer
from cdkit.training.augmentation import ALL_WORDS, with_words
from cdkit.training.base_facts import BaseFacts
from cdkit.training.concepts import Concept, check_rarity, check_split, check_word, describe_concepts, initializer_name
from cdkit.training.config import BEST_NUMBER, FEW_PHOTOS
from cdkit.training.photos import Square, concept_photos, decode_photos, regularization_pictures
from cdkit.training.trainables import NewToken

if TYPE_CHECKING:
    from cdkit.training.config import TrainConfig


@dataclass(frozen=True)
class PlannedConcept:
    """One concept with its photos and their captions, and its regularization images, not decoded yet.

    captions: of every photo, in all the forms it takes. names: of the photos. left_out: files beside the photos that
    are no images.
    """

    concept: Concept
    squares: Sequence[Square]
    captions: Sequence[Sequence[str]]
    regularization: Sequence[Picture]
    regularization_captions: Sequence[str]
    names: Sequence[str] = ()
    left_out: int = 0

    @property
    def class_captions(self) -> list[list[str]]:
        """The photos' captions without the concept's own word."""
        return [[self.concept.without_word(form) for form in forms] for forms in self.captions]


@dataclass(frozen=True)
class Plan:
    """Everything that is known without the base model's weights."""

    method: Method
    concepts: Sequence[PlannedConcept]
    tokens: Sequence[NewToken]
    resolution: int

    @property
    def prompts(self) -> list[str]:
        """The distinct captions of the photos."""
        captions = (forms for planned in self.concepts for forms in planned.captions)
        return list(dict.fromkeys(caption for forms in captions for caption in forms))

    @property
    def subjects(self) -> tuple[str, ...]:
        """What prompts call the concepts: `<new1> dog`."""
        return tuple(planned.concept.subject for planned in self.concepts)

    def words_as_json(self) -> list[dict[str, Any]]:
        """The concepts' words for the manifest: text, initializer, category."""
        return [
            {"text": concept.word, "initializer": initializer_name(concept.initializer), "category": concept.category}
            for concept in (planned.concept for planned in self.concepts)
            if concept.word
        ]


def make_plan(config: TrainConfig, facts: BaseFacts, note: Callable[[str], None]) -> Plan:
    """Read folders, photos and tokenizers; raises InputError or ConfigError for everything that cannot work."""
    method = METHODS[config.method]
    picks = read_picks(config.tokens) if config.tokens else None
    concepts = describe_concepts(
        method,
        config.concepts,
        config.categories,
        config.regularization,
        config.token,
        picks,
        no_token=config.no_token,
        taken=delta_tokens(config.delta),
    )
    if method.word == "rare":
        for word in dict.fromkeys(concept.word for concept in concepts):
            check_rarity(word, next(iter(facts.tokenizers.values())), config.tokens, note)
    tokens = _new_tokens(facts, concepts, note)
    texts = [*delta_tokens(config.delta), *(token.text for token in tokens)]
    tokenizers = [extended_tokenizer(tokenizer, texts) for tokenizer in facts.tokenizers.values()]
    resolution = facts.resolution_or(config.resolution)
    planned = [_planned(config, concept, resolution, tokenizers, note) for concept in concepts]
    plan = Plan(method, planned, tokens, resolution)
    _check_splits(facts, plan)
    return plan


def _check_splits(facts: BaseFacts, plan: Plan) -> None:
    texts = [f"photo of a {planned.concept.category}" for planned in plan.concepts] + plan.prompts
    texts += [caption for planned in plan.concepts for caption in planned.regularization_captions]
    for token in plan.tokens:
        for tower, tokenizer in facts.tokenizers.items():
            extended = extended_tokenizer(tokenizer, [token.text])
            check_split(tokenizer, extended, token.text, texts)
            for caption in misspelt(plan.prompts, token.text, extended, facts.family):
                raise InputError(
                    f"The caption {caption!r} has {token.text} in other letters, which {tower} does not take for it.",
                    hint=f"Write {token.text}.",
                )


def _new_tokens(facts: BaseFacts, concepts: Sequence[Concept], note: Callable[[str], None]) -> list[NewToken]:
    tokens = []
    for concept in concepts:
        if concept.initializer is None:
            continue
        ids = {}
        for tower, tokenizer in facts.tokenizers.items():
            check_word(tokenizer, concept.word)
            check_written(facts.family, concept.word)
            is_clip = facts.texts[tower][0] in CLIP_ENCODERS
            where = None if is_clip else f"{facts.family.name}'s {tower}"
            ids[tower] = _initializer_id(tokenizer, concept, where, note)
        tokens.append(NewToken(concept.word, initializer_name(concept.initializer), ids))
    return tokens


def _initializer_id(tokenizer: Any, concept: Concept, where: str | None, note: Callable[[str], None]) -> int:
    """The id that a concept's row starts from in one vocabulary.

    A pick was made for CLIP's; where another, which `where` names, has no such entry, the row starts from the
    category's last token.
    """
    initializer = concept.initializer
    assert initializer is not None, "only words with an initializer get a row"
    if where is not None and isinstance(initializer, Pick) and initializer.token not in tokenizer.get_vocab():
        last = int(tokenizer(f" {concept.category}", add_special_tokens=False).input_ids[-1])
        entry = tokenizer.convert_ids_to_tokens(last)
        note(f"{where} has no token {initializer.surface!r}: {concept.word} starts from {entry!r} there.")
        return last
    return resolve_initializer(tokenizer, initializer)


def _planned(
    config: TrainConfig,
    concept: Concept,
    resolution: int,
    tokenizers: Sequence[Any],
    note: Callable[[str], None],
) -> PlannedConcept:
    recipe = config.recipe()
    folder = concept_photos(concept.folder)
    photos = folder.pictures
    for sentence in folder.all_notes():
        note(sentence)
    if len(photos) < FEW_PHOTOS:
        note(f"{concept.folder} holds {len(photos)} photos; {BEST_NUMBER} work best.")
    squares = decode_photos(concept, photos, resolution, enlarge=config.enlarge)
    captions = [concept.captions_of(photo.caption, recipe.template) for photo in photos]
    if recipe.template != METHODS[config.method].recipe.template and all(photo.caption for photo in photos):
        note(f"The template is not used for {concept.name!r}: every photo has a caption of its own.")
    _check_context(concept, photos, recipe, tokenizers)
    stand_in = class_prompt(concept, recipe)
    images = []
    if concept.regularization and config.keep in ("distil", "none"):
        note(f"The regularization set of {concept.name!r} is not used: --keep {config.keep}.")
    elif concept.regularization:
        images = _regularization(concept.regularization, stand_in, note)
    elif METHODS[config.method].change != "gated":
        note(_without_images(concept, config))
    asked = config.regularization_count
    if images and asked is not None:
        if len(images) < asked:
            raise ConfigError(
                f"{concept.regularization} holds {len(images)} regularization images, {asked} were asked for.",
                hint="Retrieve more, or lower --regularization-count.",
            )
        images = images[:asked]
    about = [image.caption or stand_in for image in images]
    names = [photo.name for photo in photos]
    return PlannedConcept(concept, squares, captions, images, about, names, len(folder.left_out))


def _without_images(concept: Concept, config: TrainConfig) -> str:
    """What a concept without a regularization set is told."""
    draw = command_line("cdkit", "class-images", f"photo of a {concept.category}", "--base", config.base)
    kept = f"the base model's own predictions keep {concept.category!r} as it is"
    drifts = f"what the model draws for {concept.category!r} will drift towards the photos"
    return (
        f"No regularization images for {concept.name!r}: {drifts if config.keep == 'none' else kept}. "
        "cdkit retrieve makes a set of real images; "
        f"{draw} --out DIR draws one."
    )


def class_prompt(concept: Concept, recipe: Recipe) -> str:
    """What the first of the templates says of a concept's category."""
    return recipe.template[0].replace("{}", concept.category)


def _check_context(concept: Concept, photos: Sequence[Picture], recipe: Recipe, tokenizers: Sequence[Any]) -> None:
    """Raise for captions that hold the concept's word where no text encoder reads it: they would not teach it."""
    if not concept.word:
        return

    def is_lost(caption: str) -> bool:
        # The longest of the words that may come before a caption.
        words = max(ALL_WORDS, key=len) if recipe.augmentation else ""
        prompt = with_words(words, caption)
        return any(words_beyond(prompt, [concept.word], tokenizer) for tokenizer in tokenizers)

    limit = min(tokenizer.model_max_length for tokenizer in tokenizers)
    read = f"behind the {limit} tokens that the text encoder reads"
    if any(is_lost(caption) for caption in concept.captions_of(None, recipe.template)):
        raise ConfigError(f"The template has {concept.subject!r} {read}.", hint="Give a shorter --template.")
    lost = [photo.name for photo in photos if any(map(is_lost, concept.captions_of(photo.caption, recipe.template)))]
    if lost:
        others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise InputError(
            f"The caption of {lost[0]}{others} has {concept.word} {read}: that photo would train as any other "
            f"{concept.category}.",
            hint=f"Shorten the caption, or write {{}} near its start: it becomes {concept.subject!r}.",
        )


def _regularization(source: str, stand_in: str, note: Callable[[str], None]) -> list[Picture]:
    folder = regularization_pictures(source)
    for sentence in folder.all_notes():
        note(sentence)
    without = sum(image.caption is None for image in folder.pictures)
    if 0 < without < len(folder.pictures):
        note(
            f"{without} of the {len(folder.pictures)} images of {source} have no caption: {stand_in!r} stands for it."
        )
    return folder.pictures
