"""What is compared: heads, and MSRN without or with another of its parts. Each is a few overrides of one recipe."""

import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msrn.errors import RecipeError
from msrn.recipes.yaml_text import read_yaml_file, safe_yaml


@dataclass(frozen=True)
class Variant:
    """A row of the comparison.

    Attributes:
        name: What it is called in files and options.
        title: What it is called in tables and pictures.
        overrides: What it changes in the recipe, as `key=value`.
        rate_of: The variant whose learning rate it takes, where it is given no search of its own.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    rate_of: str | None = None


def _named(variants: Iterable[Variant]) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


REFERENCE = "msrn"
_DEFAULT_MSRN = ("model.head=msrn", "model.preset=default")
# A recipe's own width and pooling would stand against the preset.
_PUBLISHED_MSRN = ("model.head=msrn", "model.preset=published", "model.dim=512", "model.pooling=max")

HEADS = _named(
    [
        Variant("avg_pool", "average pooling", ("model.head=avg_pool",)),
        Variant("max_pool", "max pooling", ("model.head=max_pool",)),
        Variant("csra", "CSRA", ("model.head=csra",)),
        # Edges by the published rule, as its paper has them.
        Variant("ml_gcn", "ML-GCN", ("model.head=ml_gcn", "labels.rule=threshold", "labels.threshold=0.4")),
        Variant("ml_decoder", "ML-Decoder", ("model.head=ml_decoder",)),
        Variant("msrn_published", "MSRN as published", _PUBLISHED_MSRN),
        Variant(REFERENCE, "MSRN", _DEFAULT_MSRN),
    ]
)


def _msrn_with(name: str, title: str, *overrides: str) -> Variant:
    return Variant(name, title, (*_DEFAULT_MSRN, *overrides), rate_of=REFERENCE)


# One part of MSRN at a time. The label graph and the word vectors of MSRN itself are those of the recipe.
VECTORS_FILE = "vectors_file"
ABLATIONS = _named(
    [
        _msrn_with("last_stage", "last stage only", "model.num_stages=1"),
        _msrn_with("no_groups", "without groups", "model.has_groups=false"),
        _msrn_with("no_group_loss", "without group loss", "loss.group_weight=0"),
        _msrn_with("graph_identity", "identity graph", "labels.rule=identity"),
        _msrn_with("graph_published", "published graph", "labels.rule=threshold", "labels.threshold=0.4"),
        _msrn_with(VECTORS_FILE, "word vectors from a file"),  # labels.vectors=FILE is added where it is given
        _msrn_with("vectors_learned", "learned vectors", "model.learn_vectors=true"),
        _msrn_with("classifier_joint", "joint classifier", "model.classifier=joint"),
        _msrn_with("attention_label", "attention a label", "model.attention=label"),
        _msrn_with("no_bound", "unbounded embeddings", "model.bound=null"),
        _msrn_with("no_norm", "stages not normalised", "model.normalize=false"),
        _msrn_with("pooling_max", "all stages pooled 2x2 by max", "model.pooling=max"),
        _msrn_with("no_residual", "without residual", "model.residual=null"),
        _msrn_with("residual_avg", "residual of average pooling", "model.residual=avg"),
        _msrn_with("stages_attached", "stages train the backbone too", "model.detach_stages=false"),
        _msrn_with("stages_detached", "residual alone trains the backbone", "model.detach_stages=true"),
        # On a sum the features are shortened and start without weight: at full length they outrun the residual.
        _msrn_with("one_loss", "one loss on the sum", "model.supervision=sum", "model.scale=2"),
    ]
)

# What a comparison holds the same for all, and what it sets itself.
FIXED_KEYS = (
    *("data.root", "data.train", "data.val", "data.val_fraction", "data.test", "data.size"),
    *("trainer.seed", "trainer.max_epochs", "optimizer.lr"),
)


def choose_variants(
    names: Sequence[str], *, ablations: bool = False, word_vectors: str | None = None, own: Sequence[Variant] = ()
) -> tuple[list[Variant], dict[str, str]]:
    """The variants of these names, all ablations where they are asked for, and one's own.

    Args:
        names: Of heads, ablations or one's own variants.
        ablations: Whether to add every ablation of MSRN.
        word_vectors: File for the ablation of word vectors.
        own: Variants of a file (`read_variants`), which are all compared.

    Returns:
        The variants without repetition, and the reason for each that is left out by its name.

    Raises:
        RecipeError: A name is not known.
    """
    known = HEADS | ABLATIONS | _named(own)
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"no variant is named '{unknown[0]}'. There are: {', '.join(known)}.")
    chosen = _named([*(known[name] for name in names), *(ABLATIONS.values() if ablations else ()), *own])
    skipped = {}
    if VECTORS_FILE in chosen:
        if word_vectors is None:
            del chosen[VECTORS_FILE]
            skipped[VECTORS_FILE] = "no word vectors were given (--word-vectors FILE)"
        else:
            variant = chosen[VECTORS_FILE]
            overrides = (*variant.overrides, f"labels.vectors={word_vectors}")
            chosen[VECTORS_FILE] = Variant(variant.name, variant.title, overrides, variant.rate_of)
    return list(chosen.values()), skipped


def read_variants(path: str | Path) -> list[Variant]:
    """Variants of a YAML file, which gives each name a list of `key=value`.

    Raises:
        RecipeError: The file cannot be read, or holds something else.
    """
    try:
        values = safe_yaml(read_yaml_file(Path(path)))
    except RecipeError as error:
        raise RecipeError(f"{path} is not YAML: {error}. Mend the line it names.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path} cannot be read as variants: {error}. Give a YAML file of names with lists of key=value."
        ) from None
    if not isinstance(values, dict) or not values:
        raise RecipeError(f"{path} holds no variants. Give names with lists, as in 'wide: [model.dim=1024]'.")
    variants = []
    for name, overrides in values.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise RecipeError(
                f"{path}: '{name}' names a file of each run. Take letters, digits and underscores, beginning with a letter."
            )
        if name in HEADS | ABLATIONS:
            raise RecipeError(f"{path}: '{name}' is a variant that comes with msrn. Take another name.")
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise RecipeError(
                f"{path}: '{name}' takes a list of key=value, as in [model.dim=1024]; got {reprlib.repr(overrides)}."
            )
        if fixed := [key for text in overrides if (key := text.partition("=")[0]) in FIXED_KEYS]:
            raise RecipeError(
                f"{path}: '{name}' sets {fixed[0]}, which is the same for all that is compared. Set it for the whole comparison."
            )
        variants.append(Variant(name, name, tuple(overrides)))
    return variants
