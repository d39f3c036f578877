"""From images to ranked labels: what the command line, Python and every later front end share."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from msrn.bundle import HUB_PREFIX, Bundle, find_bundle, load_bundle
from msrn.data.images import read_image, to_rgb
from msrn.data.loader import build_loader
from msrn.data.packed import PackedImage
from msrn.data.source import LabelledImages
from msrn.errors import LabelMismatchError, ModelError, UnreadableImageError
from msrn.explain import EdgeRemovals, Explanation, Related, explain_logits, related_effects
from msrn.models import MSRN, InferenceMSRN, use_channels_last
from msrn.prediction import LabelProbability, Prediction

ImageLike = str | Path | PackedImage | Image.Image


class Predictor:
    """A trained model that takes images.

    Args:
        bundle: The model and its preprocessing.
        device: Where to run; by default a CUDA device if there is one.
        bf16: Compute in bfloat16 where PyTorch takes it to be safe: faster on recent GPUs, less exact.

    Example:
        `predictor = msrn.load("runs/demo/bundle")`; `predictor.predict("photo.jpg")[0].labels` are its labels, best first.
    """

    def __init__(self, bundle: Bundle, *, device: str | torch.device | None = None, bf16: bool = False) -> None:
        self.bundle = bundle
        self.bf16 = bf16
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = bundle.model.to(self.device).eval()
        self.model = InferenceMSRN(model) if isinstance(model, MSRN) else model
        self._removals: EdgeRemovals | None = None
        use_channels_last(self.model)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels, in the order of the probabilities."""
        return self.bundle.label_names

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
    ) -> list[Prediction]:
        """Ranked labels of one image or many.

        Args:
            images: A path, a Pillow image, or several of them.
            threshold: Keep labels with at least this probability; the bundle's own, a label, where neither this nor `top_k` is
                given.
            top_k: Keep at most this many labels.
            batch_size: Images a pass through the network.

        Returns:
            One prediction an image, in order; an image that cannot be read has an `error` and no labels.
        """
        given = [images] if isinstance(images, str | Path | PackedImage | Image.Image) else images
        return list(self.predict_stream(given, threshold=threshold, top_k=top_k, batch_size=batch_size))

    def predict_stream(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
    ) -> Iterator[Prediction]:
        """As `predict`, one batch at a time, so that any number of images needs the memory of one batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}.")
        self.least(threshold, top_k)
        pending = iter(images)
        while batch := list(islice(pending, batch_size)):
            prepared = [self._prepare(image) for image in batch]
            tensors = [tensor for tensor in prepared if isinstance(tensor, Tensor)]
            probs = iter(self.probs(torch.stack(tensors))) if tensors else iter(())
            for image, tensor in zip(batch, prepared, strict=True):
                path = None if isinstance(image, Image.Image) else Path(image)
                if isinstance(tensor, Tensor):
                    yield Prediction(path, self.rank(next(probs), threshold=threshold, top_k=top_k))
                else:
                    yield Prediction(path, (), error=tensor)

    def probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Probabilities of a batch that is already preprocessed, calibrated where the bundle is, on the CPU in float64.

        Raises:
            ModelError: The output is not finite.
        """
        return self.bundle.probs(self.logits(images))

    @torch.inference_mode()
    def logits(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """The model's output for a batch that is already preprocessed, on the CPU in float64.

        Raises:
            ModelError: The output is not finite.
        """
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.model(images)
        if not torch.isfinite(logits).all():
            raise ModelError("the model's output is not finite. Check its weights: training may have diverged.")
        return logits.double().cpu()

    def explain(
        self, image: ImageLike, labels: str | Sequence[str] | None = None, *, top_k: int = 3, with_related: bool = True
    ) -> Explanation:
        """Why an image has its labels: what each position, stage, group and related label adds to their scores.

        Args:
            image: A path or a Pillow image.
            labels: A name of a label, or several; by default the `top_k` most probable.
            top_k: How many labels where none are named.
            with_related: Also what related labels do, which reads the label graph anew for each of their edges.

        Raises:
            ModelError: The model is another head than MSRN, which has no explanation of its own, or its output is not finite.
            LabelMismatchError: The model does not know a label.
            UnreadableImageError: The image cannot be read.
        """
        return next(self.explain_stream([image], labels, top_k=top_k, with_related=with_related))

    def explain_stream(
        self,
        images: Iterable[ImageLike],
        labels: str | Sequence[str] | None = None,
        *,
        top_k: int = 3,
        with_related: bool = True,
        batch_size: int = 8,
        on_error: Callable[[UnreadableImageError], None] | None = None,
    ) -> Iterator[Explanation]:
        """As `explain`, for many images: a batch a pass through the backbone, one image after the other from there on.

        An image that cannot be read ends it, or is left out where `on_error` is given, which is then called.
        """
        model = self.bundle.model
        if not isinstance(model, MSRN):
            raise ModelError(
                f"a {self.bundle.architecture.get('name')} head has no attention to explain. Give a bundle whose head is MSRN."
            )
        for name, number in (("top_k", top_k), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} is at least 1, got {number}.")
        named = None if labels is None else self._indices([labels] if isinstance(labels, str) else labels)
        if with_related and self._removals is None:
            self._removals = EdgeRemovals(model)
        membership = model.embed().assignment.cpu()
        readable = self._readable(images, on_error)
        while batch := list(islice(readable, batch_size)):
            tensors = torch.stack([self.bundle.preprocessing(rgb) for _, rgb in batch]).to(self.device)
            tensors = tensors.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                stages = model.backbone(tensors)
                logits = model.head(stages)
            if not torch.isfinite(logits).all():
                raise ModelError("the model's output is not finite. Check its weights: training may have diverged.")
            probs = self.bundle.probs(logits.double().cpu())
            for index, (image, rgb) in enumerate(batch):
                own = probs[index].topk(min(top_k, len(self.label_names))).indices.tolist() if named is None else named
                one, maps = tensors[index : index + 1], [stage[index : index + 1] for stage in stages]
                scores = logits[index : index + 1]
                parts = explain_logits(model, one, own, feature_maps=maps, logits=scores).to("cpu")
                edges: tuple[Related, ...] | None = None
                if with_related:
                    found = related_effects(model, one, own, feature_maps=maps, removals=self._removals)
                    edges = tuple(replace(edge, effects=edge.effects.cpu()) for edge in found)
                yield Explanation(
                    rgb,
                    None if isinstance(image, Image.Image) else Path(image),
                    self.label_names,
                    parts,
                    probs[index, own],
                    self.bundle.calibration is not None,
                    membership,
                    edges,
                )

    def _readable(
        self, images: Iterable[ImageLike], on_error: Callable[[UnreadableImageError], None] | None
    ) -> Iterator[tuple[ImageLike, Image.Image]]:
        """Images with their pixels."""
        for image in images:
            try:
                yield image, self._read(image)
            except UnreadableImageError as error:
                if on_error is None:
                    raise
                on_error(error)

    def _read(self, image: ImageLike) -> Image.Image:
        if not isinstance(image, Image.Image):
            return read_image(image)
        try:
            return to_rgb(image)
        except OSError as error:  # an opened file whose pixels turn out to be damaged
            raise UnreadableImageError(
                f"the image in memory cannot be read ({error}). Open it again, or leave it out."
            ) from error

    def _indices(self, labels: Sequence[str]) -> list[int]:
        """The numbers of labels by their names, each once."""
        if not labels:
            raise LabelMismatchError("no label was named. Name some, or none at all for the most probable.")
        unknown = [name for name in labels if name not in self.label_names]
        if unknown:
            shown = unknown[0] if len(unknown[0]) <= 60 else f"{unknown[0][:59]}…"
            close = difflib.get_close_matches(unknown[0], self.label_names, n=1)
            hint = f" Do you mean '{close[0]}'?" if close else ""
            raise LabelMismatchError(f"the model knows no label '{shown}'.{hint} It knows {len(self.label_names)}.")
        return [self.label_names.index(name) for name in dict.fromkeys(labels)]

    def probs_of_split(
        self, images: LabelledImages, *, batch_size: int = 32, num_workers: int = 0
    ) -> Iterator[tuple[Float[Tensor, "B L"], Tensor]]:
        """Probabilities and targets of a labelled split, a batch at a time, in order."""
        batches = self.logits_of_split(images, batch_size=batch_size, num_workers=num_workers)
        return ((self.bundle.probs(logits), target) for logits, target in batches)

    def logits_of_split(
        self, images: LabelledImages, *, batch_size: int = 32, num_workers: int = 0
    ) -> Iterator[tuple[Float[Tensor, "B L"], Tensor]]:
        """The model's output and targets of a labelled split, a batch at a time, in order."""
        loader = build_loader(images, self.bundle.preprocessing, batch_size=batch_size, num_workers=num_workers)
        for batch in loader:
            yield self.logits(batch["images"]), batch["target"]

    def _prepare(self, image: ImageLike) -> Tensor | str:
        """The network's input, or why there is none."""
        try:
            return self.bundle.preprocessing(self._read(image))
        except UnreadableImageError as error:
            return str(error)

    def rank(
        self, probs: Float[Tensor, "L"], *, threshold: float | None = None, top_k: int | None = None
    ) -> tuple[LabelProbability, ...]:
        """The labels of one image from its probabilities, best first; `threshold` and `top_k` as in `predict`."""
        kept = (probs >= self.least(threshold, top_k)).nonzero().squeeze(1)
        order = kept[probs[kept].argsort(descending=True, stable=True)][:top_k].tolist()
        return tuple(LabelProbability(self.label_names[label], float(probs[label])) for label in order)

    def least(self, threshold: float | None, top_k: int | None) -> Float[Tensor, "L"] | float:
        """The least probability of each label, or of all, that `predict` keeps.

        Raises:
            ValueError: One of both is out of range.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is at least 1, got {top_k}.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}.")
        if threshold is None and top_k is None:
            return self.bundle.label_thresholds
        return threshold or 0.0


def load(path: str | Path, *, device: str | None = None, bf16: bool = False) -> Predictor:
    """Load a bundle for prediction; `device` and `bf16` as in `Predictor`.

    Args:
        path: Its folder, or `hub:owner/name` (`hub:owner/name@revision`) of a bundle on the Hugging Face hub.
        device: See `Predictor`.
        bf16: See `Predictor`.

    Raises:
        BundleError: The folder is not a whole bundle.
    """
    found = find_bundle(path) if str(path).startswith(HUB_PREFIX) else path
    return Predictor(load_bundle(found), device=device, bf16=bf16)
