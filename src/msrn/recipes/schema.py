"""What a recipe may say. Unknown keys and impossible values are collected and reported together."""

import difflib
import re
import reprlib
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from msrn.data.source import SPLITS
from msrn.data.transforms import IMAGENET_MEAN, IMAGENET_STD, PUBLISHED_CROP_SCALES, CropName
from msrn.errors import RecipeError
from msrn.files import is_utf8
from msrn.prediction import MAX_INPUT_PIXELS

SplitName = Literal["train", "val", "test"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# Far above what anyone needs: what is larger is a slip, or meant to fill the memory.
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Rate = Annotated[float, Field(gt=0)]
Exponent = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
_MAX_NAME_BYTES = 200  # of the 255 that a file system allows
HeadName = Literal["msrn", "avg_pool", "max_pool", "csra", "ml_gcn", "ml_decoder"]
PoolingName = Literal["max", "avg", "none"]


class Section(BaseModel):
    """Strict and unchangeable: a key that is not listed is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataRecipe(Section):
    """Which images are read, and how they become batches."""

    root: str = Field(
        "scenes", description="Path of the data, whose layout is recognised (docs/data.md); 'scenes' is generated."
    )
    path_column: str | None = Field(None, description="Column of the paths in a table; found by its name by default.")
    label_column: str | None = Field(None, description="Column of the labels in a table; found by its name by default.")
    label_names: tuple[str, ...] | None = Field(None, description="Labels to read from a table, in this order.")
    label_separator: str | None = Field(None, description="What stands between two labels of a cell; found by default.")
    split_column: str | None = Field(None, description="Column of the splits in a table; found by its name by default.")
    keep_unannotated: bool | None = Field(
        None, description="Keep COCO's images without annotations, as images of nothing; left out by default."
    )
    allow_outside: bool = Field(False, description="Let a table or list name images outside of its folder.")
    train: Annotated[tuple[SplitName, ...], Field(min_length=1)] = Field(("train",), description="Splits to train on.")
    val: SplitName | Literal["auto", "held_out"] = Field(
        "auto",
        description="Split that chooses the epoch; 'auto' is val unless used otherwise, else a held-out part of train.",
    )
    val_fraction: Fraction = Field(0.1, description="Part of train that is held out.")
    test: SplitName | Literal["auto"] | None = Field(
        "auto", description="Split read once, at the end; 'auto' is test where there is one, null reads none."
    )
    size: tuple[Width, Width] = Field((448, 448), description="Height and width of the network's input.")
    crop: CropName = Field(
        "random_resized", description="Training crops: a share of the area, 'multi_scale' as published, or 'none'."
    )
    crop_scale: tuple[Fraction, Share] = Field(
        (0.36, 1.0), description="Least and greatest share of the area of a 'random_resized' crop."
    )
    crop_scales: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        PUBLISHED_CROP_SCALES, description="Sides of a 'multi_scale' crop, as shares of the image's shorter side."
    )
    max_distort: Count = Field(2, description="How many places its height and width may lie apart in crop_scales.")
    flip: bool = Field(True, description="Mirror half of the training images.")
    rand_augment: Count = Field(0, description="Operations of RandAugment an image; 0 for none.")
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(9, description="Strength of RandAugment.")
    erase: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Chance that a rectangle is erased.")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="Alpha of MixUp; 0 switches it off.")
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Alpha of CutMix; 0 switches it off. With mixup too, each batch gets one of them."
    )
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="Mean of red, green and blue.")
    std: tuple[Rate, Rate, Rate] = Field(IMAGENET_STD, description="Standard deviation of red, green and blue.")
    batch_size: PositiveInt = Field(32, description="Images a training batch, of each process.")
    num_workers: Count = Field(1, description="Processes that read images, for each that trains.")
    reduced_decode: bool = Field(
        True, description="Decode large training JPEGs at 1/2, 1/4 or 1/8 where every crop stays as large as the input."
    )
    cache_gb: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="GB of memory for decoded training images, a process; a quarter of what is free by default, 0 keeps none.",
    )

    @model_validator(mode="after")
    def _size_is_sensible(self) -> "DataRecipe":
        if self.size[0] * self.size[1] > MAX_INPUT_PIXELS:
            raise ValueError(f"data.size has at most {MAX_INPUT_PIXELS:,} pixels; got {list(self.size)}")
        return self

    @model_validator(mode="after")
    def _crops_are_ordered(self) -> "DataRecipe":
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"data.crop_scale is least, greatest; got {list(self.crop_scale)}")
        return self

    def augmentation(self) -> dict[str, Any]:
        """Arguments of `msrn.data.transforms.TrainTransform`."""
        names = ("crop", "crop_scale", "crop_scales", "max_distort", "flip")
        return self.model_dump(include={*names, "rand_augment", "rand_augment_magnitude", "erase"})

    def source_options(self) -> dict[str, Any]:
        """Arguments of `msrn.data.open_source` that were given."""
        names = (
            "path_column",
            "label_column",
            "label_names",
            "label_separator",
            "split_column",
            "keep_unannotated",
            "allow_outside",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}


# What touches the speed of a run and how often it is saved, and no result.
SPEED_KEYS = ("data.num_workers", "data.cache_gb", "trainer.checkpoint_steps")
# Which rule of the label graph a setting belongs to.
_RULE_SETTINGS = {"threshold": "threshold", "top_k": "top-k", "significance": "lift"}


class LabelsRecipe(Section):
    """The label graph and the word vectors."""

    graph: str | None = Field(
        None,
        description="JSON of `msrn labels graph`, which brings its own edges, or a pickle of ML-GCN or MSRN in the data's order; "
        "by default counted on the training images.",
    )
    rule: Literal["threshold", "top-k", "lift", "identity"] = Field(
        "top-k",
        description="Which labels have an edge: P(j | i) >= threshold, the top_k likeliest, those together beyond chance, "
        "or none ('identity'). A rule's own setting chooses it; the published preset takes threshold.",
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Label j follows label i when P(j | i) >= threshold."
    )
    top_k: PositiveInt = Field(3, description="Edges from each label, by the rule top-k.")
    significance: Fraction = Field(0.01, description="Share of edges that may be false, by the rule lift.")
    vectors: str | None = Field(
        None,
        description="Word vectors: a file of `msrn labels vectors`, or a pickle of ML-GCN or MSRN with a row a label; "
        "made from co-occurrence by default.",
    )
    vector_dim: Width = Field(300, description="Greatest width of the vectors made from co-occurrence.")

    @model_validator(mode="before")
    @classmethod
    def _choose_rule(cls, values: Any) -> Any:
        # A setting that no rule looks at would be lost without a word.
        if isinstance(values, dict) and "rule" not in values:
            chosen = [setting for setting in _RULE_SETTINGS if setting in values]
            if len(chosen) > 1:
                rules = " and ".join(f"{setting} is a setting of rule {_RULE_SETTINGS[setting]}" for setting in chosen)
                raise ValueError(f"{rules}, and a graph has one rule. Leave one out, or set labels.rule")
            return {**values, "rule": _RULE_SETTINGS[chosen[0]]} if chosen else values
        return values


class ModelRecipe(Section):
    """Backbone and head."""

    head: HeadName = Field("msrn", description="MSRN, or a head it is compared with (docs/heads.md).")
    preset: Literal["default", "published"] = Field("default", description="What unset keys of this section mean.")
    backbone: str = Field("resnet101", description="Name of a timm model with features at several stages.")
    backbone_options: dict[str, Any] = Field({}, description="More arguments of timm.create_model.")
    pretrained: bool = Field(False, description="Start from pre-trained weights, downloaded unless `weights` is given.")
    weights: str | None = Field(None, description="Local file of pre-trained weights in timm's names.")
    init_from: str | None = Field(
        None,
        description="Bundle to start from instead, its folder or owner/name on the hub: a model of this architecture, of other "
        "labels or the same.",
    )
    keep_last_layers: bool = Field(False, description="Keep pre-trained layers behind the last stage.")
    freeze_batch_norm: bool = Field(False, description="Keep the backbone's stored batch-norm statistics in training.")
    frozen_stages: Count = Field(
        0, description="Stages of the backbone, from the first, that are kept as they are; the stem with them."
    )
    num_stages: Width = Field(3, description="Stages used, counted from the last.")
    dim: Width = Field(512, description="Width of the embeddings.")
    group_ratio: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="Groups a label.")
    has_groups: bool = Field(True, description="Learn groups of labels; false leaves MSRN's global semantics out.")
    learn_vectors: bool = Field(False, description="Train the labels' vectors from a random start; none are read.")
    attention: Literal["channel", "label"] = Field(
        "channel", description="Each channel of a label attends on its own, as published, or all of them together."
    )
    pooling: Literal["auto"] | PoolingName | tuple[PoolingName, ...] = Field(
        "auto", description="2x2 pooling of the stages; 'auto' pools all but the last by max."
    )
    has_buffers: bool | tuple[bool, ...] = Field(False, description="1x1 convolution ahead of the pooling.")
    normalize: bool = Field(True, description="Normalise projected features.")
    bound: Rate | None = Field(1.0, description="Greatest size of an embedding's entry.")
    gain: Rate = Field(0.3, description="Factor on the embeddings ahead of the bound.")
    classifier: Literal["per_label", "joint"] = Field("per_label", description="Per-label or the published joint one.")
    classifier_dim: Width = Field(2048, description="Hidden width of the joint classifier.")
    scale: Rate | None = Field(
        None, description="Length to which the per-label classifier shrinks normalised features; null leaves them."
    )
    residual: Literal["attended", "avg", "max"] | None = Field(
        "attended", description="Head on the last stage, beside the attended stages."
    )
    residual_attention: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="Of residual 'attended': weight of the attended scores beside their mean, in evaluation."
    )
    supervision: Literal["each", "sum"] = Field(
        "each",
        description="'each': attended stages and residual have a loss each, and the network returns the mean of their logits. "
        "'sum': it returns the sum of their logits, which has one loss.",
    )
    detach_stages: bool | None = Field(
        None,
        description="Stop the gradient of the attended stages ahead of the backbone, which then learns from the residual alone. "
        "null: where the backbone starts pre-trained and a residual has a loss of its own.",
    )
    csra_heads: Literal[1, 2, 4, 6, 8] = Field(1, description="Attention heads of CSRA.")
    csra_lambda: Annotated[float, Field(ge=0)] = Field(0.1, description="Weight of CSRA's attention.")
    decoder_groups: Width = Field(100, description="Most queries of ML-Decoder, which share the labels.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        # Here, so that a resolved recipe holds every value and means the same when it is read again.
        if isinstance(values, dict) and values.get("preset") == "published":
            from msrn.models.builders import PUBLISHED

            return {**PUBLISHED, **values}
        return values

    def architecture(self) -> dict[str, Any]:
        """Arguments of `msrn.models.build_model`, without pre-trained weights."""
        rivals: dict[str, dict[str, Any]] = {
            "avg_pool": {"name": "pooled", "pooling": "avg"},
            "max_pool": {"name": "pooled", "pooling": "max"},
            "csra": {"name": "csra", "num_heads": self.csra_heads, "lam": self.csra_lambda},
            "ml_gcn": {"name": "ml_gcn"},
            "ml_decoder": {"name": "ml_decoder", "num_groups": self.decoder_groups},
        }
        if self.head in rivals:
            shared = {"backbone", "backbone_options", "keep_last_layers", "freeze_batch_norm", "frozen_stages"}
            return {**rivals[self.head], **self.model_dump(include=shared)}
        others = {"head", "preset", "pretrained", "weights", "init_from", "csra_heads", "csra_lambda", "decoder_groups"}
        return {"name": "msrn", **self.model_dump(exclude=others), "detach_stages": self._detaches_stages()}

    def _detaches_stages(self) -> bool:
        if self.detach_stages is not None:
            return self.detach_stages
        is_pretrained = self.pretrained or self.weights is not None or self.init_from is not None
        return is_pretrained and self.residual is not None and self.supervision == "each"


class OptimizerRecipe(Section):
    """How the weights are moved."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW.")
    lr: Rate = Field(0.1, description="Learning rate of the head.")
    backbone_factor: Annotated[float, Field(ge=0)] = Field(0.1, description="The backbone learns at lr times this.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="Weight decay.")


class ScheduleRecipe(Section):
    """How the learning rate moves."""

    name: Literal["cosine", "step"] = Field("cosine", description="Falls to 0, or by a factor at milestones.")
    warmup_steps: Count = Field(0, description="Steps of linear rise from 0.")
    milestones: tuple[PositiveInt, ...] = Field((30,), description="Epochs at which 'step' acts.")
    step_factor: Rate = Field(0.1, description="Factor of 'step'.")


class LossRecipe(Section):
    """What is minimised."""

    name: Literal["soft_margin", "asymmetric", "focal"] = Field(
        "soft_margin", description="Binary cross-entropy, the asymmetric loss (ASL), or the focal loss."
    )
    label_weights: Literal["none", "inverse", "sqrt", "effective"] = Field(
        "none",
        description="Weigh present labels against their number n of training images: 1/n, 1/sqrt(n), or the effective number.",
    )
    beta: Fraction = Field(
        0.999, description="Of label_weights 'effective': no label counts as more than 1/(1 - beta) images."
    )
    gamma_neg: Exponent = Field(
        4.0, description="Of 'asymmetric': how much it looks away from absent labels found absent."
    )
    gamma_pos: Exponent = Field(
        0.0, description="Of 'asymmetric': how much it looks away from present labels found present."
    )
    clip: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Of 'asymmetric': absent labels below this probability are left out."
    )
    has_focus_gradient: bool = Field(
        True, description="Of 'asymmetric': pass gradients through the focusing weights, as the paper does."
    )
    gamma: Exponent = Field(2.0, description="Of 'focal': how much it looks away from labels found right.")
    alpha: Fraction | None = Field(
        0.25, description="Of 'focal': weight of present labels, absent ones having the rest; null weighs neither."
    )
    group_weight: Annotated[float, Field(ge=0)] = Field(1e-4, description="Weight of MSRN's group loss.")


class TrainerRecipe(Section):
    """How long and on what."""

    max_epochs: PositiveInt = Field(10, description="Epochs to train.")
    gradient_clip: Rate | None = Field(None, description="Greatest norm of all gradients together.")
    accumulate: PositiveInt = Field(
        1, description="Batches whose gradients are averaged for one step of the optimizer."
    )
    ema_decay: Fraction | None = Field(
        None,
        description="Decay of a moving average of the weights that is validated and kept in their stead, as in 0.999.",
    )
    early_stopping: PositiveInt | None = Field(
        None, description="Stop after so many epochs without a better validation mAP; null trains all epochs."
    )
    checkpoint_steps: PositiveInt | None = Field(
        None, description="Steps between checkpoints within an epoch, for long epochs; null keeps finished epochs only."
    )
    tensorboard: bool = Field(False, description="Write curves for TensorBoard into the run folder.")
    log_steps: PositiveInt = Field(10, description="Steps between two points of those curves.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="Lightning's precision.")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="Where to train.")
    devices: PositiveInt | None = Field(
        None, description="Processes of each machine; those that torchrun or SLURM has started, else 1, by default."
    )
    num_nodes: PositiveInt | None = Field(
        None, description="Machines; those that torchrun or SLURM uses, else 1, by default."
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="With several processes: each holds the model ('ddp', as does 'auto') or, on GPUs, a part ('fsdp').",
    )
    sync_batch_norm: bool | None = Field(
        None, description="Batch norms take the statistics of all processes' images; on GPUs by default, CPUs cannot."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of weights, order and augmentation.")


class Recipe(Section):
    """A whole training run."""

    name: str = Field("custom", description="Name of the recipe; the run folder carries it.")
    data: DataRecipe = DataRecipe()
    labels: LabelsRecipe = LabelsRecipe()
    model: ModelRecipe = ModelRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    trainer: TrainerRecipe = TrainerRecipe()

    @field_validator("name")
    @classmethod
    def _names_one_folder(cls, name: str) -> str:
        # Runs and comparisons are written to a folder of this name.
        is_one = is_utf8(name) and not re.search(r"[/\\\x00-\x1f\x7f]", name) and name.strip() not in ("", ".", "..")
        if not is_one or len(name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(
                f"name: expected the name of a folder, without / and control characters and of at most {_MAX_NAME_BYTES} bytes, "
                f"got {_BRIEF.repr(name)}"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        model, labels = (values.get(key, {}) if isinstance(values, dict) else None for key in ("model", "labels"))
        if isinstance(model, dict) and isinstance(labels, dict) and model.get("preset") == "published":
            # The published edges, unless a rule is chosen, by its name or by its setting.
            return (
                values
                if labels.keys() & {"rule", *_RULE_SETTINGS}
                else {**values, "labels": {"rule": "threshold", **labels}}
            )
        return values

    def by_dotted_key(self) -> dict[str, Any]:
        """Every value by its dotted key, as overrides name it."""
        sections = {name: value for name, value in self.model_dump().items() if isinstance(value, dict)}
        return {"name": self.name} | {
            f"{name}.{key}": value for name, own in sections.items() for key, value in own.items()
        }

    @model_validator(mode="after")
    def _splits_differ(self) -> "Recipe":
        used = [*self.data.train, *(split for split in (self.data.val, self.data.test) if split in SPLITS)]
        shared = sorted({split for split in used if used.count(split) > 1})
        if shared:
            raise ValueError(f"data.train, data.val and data.test share the split '{shared[0]}'; each may be used once")
        return self


def changed_values(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two recipes by dotted keys, in words."""
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]


def validate_recipe(values: dict[Any, Any], *, origin: str = "the recipe") -> Recipe:
    """Turn plain values into a recipe.

    Raises:
        RecipeError: Names every problem at once: unknown keys with the nearest known one, and values out of range.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        count = "" if len(problems) == 1 else f"{len(problems)} problems: "
        raise RecipeError(f"{origin}: {count}{'; '.join(problems)}") from None


def _explain(problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(part for part in path if not part.startswith(("function-", "tuple[", "literal[")))
    if problem["type"] == "extra_forbidden":
        known = known_keys()
        siblings = [name for name in known if name.startswith(key.rpartition(".")[0])]
        hint = (
            f"did you mean '{close}'?"
            if (close := _nearest(key, siblings, known))
            else "`msrn recipe show scenes` lists all keys"
        )
        return f"unknown key '{key}', {hint}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return (
        f"{key or 'the recipe'}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {_BRIEF.repr(problem['input'])}"
    )


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 200


def _nearest(key: str, siblings: list[str], known: list[str]) -> str | None:
    """The known key most like a wrong one: by what others call it, its last word elsewhere, or the spelling."""
    leaf = key.rpartition(".")[2]
    if leaf in _OTHER_NAMES:
        return _OTHER_NAMES[leaf]
    for name in known:
        if name.rpartition(".")[2] == leaf:
            return name
    for names in (siblings, known):
        by_leaf = {name.rpartition(".")[2]: name for name in names}
        for close in difflib.get_close_matches(leaf, by_leaf, n=1):
            return by_leaf[close]
    return next(iter(difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)), None)


# What other programs call our keys.
_OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "workers": "data.num_workers",
    "image_size": "data.size",
    "img_size": "data.size",
    "clip": "trainer.gradient_clip",
}


def text_keys() -> set[str]:
    """Keys whose value is text, whatever it looks like."""
    keys = set()
    for section, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys |= {f"{section}.{name}" for name, below in kind.model_fields.items() if below.annotation in _TEXT}
        elif kind in _TEXT:
            keys.add(section)
    return keys


_TEXT = (str, str | None)


def known_keys(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every key a recipe may hold, as dotted paths.

    Example:
        >>> known_keys()[:2]
        ['name', 'data']
    """
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                keys += known_keys(kind, f"{prefix}{name}.")
    return keys
