"""Why an image was given its labels: what was seen where, by which part of the network, and what related labels did."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from msrn.drawing import drawn_name, font_families
from msrn.errors import MissingDependencyError
from msrn.explain.contributions import Contributions, grow, smooth
from msrn.explain.related import Related
from msrn.files import replace_folder, write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Heat maps of larger images have this many pixels on the longer side; `heatmaps_at` gives any size.
_MOST_PIXELS = 512
_NUM_BARS = 9  # of each chart
# Related labels that move the logit by less are not worth a word or a bar.
LEAST_EFFECT = 0.005
_LEAST_REACH = 0.05  # of the charts, to each side
_MOST_PROPORTION = 4  # of the sides of pictures; longer images are drawn squeezed
APPROXIMATION = "an approximation: the classifier is not linear"
# Blue lowers the score, red raises it; readable with any colour vision.
_COLOURS = "RdBu_r"
JSON_FILE = "explanation.json"


@dataclass(frozen=True)
class Explanation:
    """What made the scores of some labels of one image.

    Attributes:
        image: The image as it was read, RGB.
        path: Its file, or None.
        label_names: All labels of the model.
        parts: What adds up to the logits, for this image alone.
        probabilities: Of the labels explained, calibrated where the bundle is.
        is_calibrated: Whether they are, and so others than the sigmoid of the logits.
        membership: How much each label belongs to each group (L, G).
        related_edges: What the labels that each label attends to do; None where that was not asked for.
    """

    image: Image.Image
    path: Path | None
    label_names: tuple[str, ...]
    parts: Contributions
    probabilities: Float[Tensor, " n"]
    is_calibrated: bool
    membership: Float[Tensor, "L G"]
    related_edges: tuple[Related, ...] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels explained, in the order they were asked for."""
        return tuple(self.label_names[label] for label in self.parts.labels)

    @property
    def picture_names(self) -> tuple[str, ...]:
        """The file that `save` writes for each label."""
        return tuple(f"{number:02d}-{_file_name(name)}.png" for number, name in enumerate(self.labels, start=1))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.height, self.image.width

    @property
    def heatmaps(self) -> Float[Tensor, "S n H W"]:
        """What each pixel adds to each label's logit at each stage, finest first.

        In the image's proportions, 512 pixels on the longer side at most; `stage_maps` has those of one label at any size.
        """
        scale = min(1.0, _MOST_PIXELS / max(self.size))
        height, width = (max(1, round(side * scale)) for side in self.size)
        return self._stages_at((height, width), range(len(self.labels)))

    def stage_maps(self, label: str, height: int | None = None, width: int | None = None) -> Float[Tensor, "S H W"]:
        """What each pixel adds to one label's logit at each stage, finest first, in the image's own size or any other.

        Raises:
            ValueError: The label was not explained.
        """
        return self._stages_at((height or self.size[0], width or self.size[1]), [self._column(label)])[:, 0]

    def heatmaps_at(self, height: int, width: int, labels: Sequence[str] | None = None) -> Float[Tensor, "n H W"]:
        """All stages and the residual together, at any size, of some of the labels explained or of all.

        Raises:
            ValueError: A label was not explained.
        """
        columns = None if labels is None else [self._column(name) for name in labels]
        return self.parts.combined((height, width), columns)[0]

    @property
    def combined(self) -> Float[Tensor, "n H W"]:
        """What each pixel adds to each label's logit, all stages and the residual together, in the image's own size.

        Of many labels of a large image that is much memory, 48 MB for each at 12 megapixels: `heatmaps_at` takes some at a time.
        """
        return self.heatmaps_at(*self.size)

    @property
    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """For each label its groups, the greatest contribution first.

        Each has its number, `group`, the label's `membership`, its `contribution`, and the `labels` that belong to it most.
        """
        members = self._members()
        found = {}
        for column, label in enumerate(self.parts.labels):
            shares, added = self.membership[label].tolist(), self.parts.groups[0, column].tolist()
            rows = [
                {"group": group, "membership": share, "contribution": own, "labels": labels}
                for group, (share, own, labels) in enumerate(zip(shares, added, members, strict=True))
            ]
            found[self.label_names[label]] = sorted(rows, key=lambda row: -abs(row["contribution"]))
        return found

    def group_maps(self, label: str) -> list[Float[Tensor, "G _h _w"]]:
        """What each position adds to one label's logit through each group: a stage each, finest first, as coarse as they are.

        Empty where there are no groups, and where many labels and groups at once would make them large: explain fewer labels.

        Raises:
            ValueError: The label was not explained.
        """
        column = self._column(label)
        return [own[0, column] for own in self.parts.group_maps]

    def _members(self) -> list[list[str]]:
        """For each group the labels that belong to it most."""
        members: list[list[str]] = [[] for _ in range(self.membership.shape[1])]
        if members:
            for name, group in zip(self.label_names, self.membership.argmax(dim=1).tolist(), strict=True):
                members[group].append(name)
        return members

    def _column(self, label: str) -> int:
        if label not in self.labels:
            raise ValueError(
                f"'{label}' was not explained; there are {', '.join(self.labels)}. Ask for it in explain()."
            )
        return self.labels.index(label)

    @property
    def related(self) -> dict[str, list[dict[str, Any]]]:
        """For each label what the labels that it attends to do to its logit: `label` and `effect`, the greatest first."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.labels}
        for edge in self.related_edges or ():
            found[self.label_names[edge.label]].append(
                {"label": self.label_names[edge.other], "effect": float(edge.effects[0])}
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: for each label its probability, logit, and what adds up to it; and the groups.

        `note` says so where the parts are an approximation; `related` is None where it was not asked for.

        Peaks are the middles of the regions that add most, in fractions of the image's width and height from its upper left
        corner; `size` is that of a stage's map, height and width in cells.
        """
        grid = _grid(self.size)
        together = _peaks(self.heatmaps_at(*grid))
        wholes = self.parts.stage_maps()
        by_stage = [_peaks(grow(own, grid, shift)[0]) for own, shift in zip(wholes, self.parts.shifts, strict=False)]
        residual = self.parts.residual
        of_residual = [] if residual is None else _peaks(grow(residual, grid, self.parts.shifts[-1])[0])
        groups, related = self.groups, self.related
        rows = []
        for column, name in enumerate(self.labels):
            stages = [
                {
                    "peak": by_stage[index][column],
                    "size": list(whole.shape[-2:]),
                    "contribution": float(whole[0, column].sum()),
                    **{key: float(own[index][0, column].sum()) for key, own in self._by_part().items()},
                }
                for index, whole in enumerate(wholes)
            ]
            rows.append(
                {
                    "name": name,
                    "probability": float(self.probabilities[column]),
                    "logit": float(self.parts.logits[0, column]),
                    "stages": stages,
                    "residual": None
                    if residual is None
                    else {
                        "peak": of_residual[column],
                        "size": list(residual.shape[-2:]),
                        "contribution": float(residual[0, column].sum()),
                    },
                    "constant": float(self.parts.constant[0, column]),
                    "rest": float(self.parts.rest[0, column]),
                    "peak": together[column],
                    "groups": [
                        {key: row[key] for key in ("group", "membership", "contribution")} for row in groups[name]
                    ],
                    "related": None if self.related_edges is None else related[name],
                }
            )
        return {
            "path": None if self.path is None else str(self.path),
            "size": list(self.size),
            "is_exact": self.parts.is_exact,
            "note": None if self.parts.is_exact else APPROXIMATION,
            "is_calibrated": self.is_calibrated,
            "labels": rows,
            "groups": [{"group": group, "labels": labels} for group, labels in enumerate(self._members())],
        }

    def _by_part(self) -> dict[str, Sequence[Tensor]]:
        """The stages' maps by whose attention they are."""
        parts = {"own": self.parts.own, "by_group": self.parts.by_group, "by_others": self.parts.by_others}
        return {name: maps for name, maps in parts.items() if maps}

    def in_percent(self, label: str) -> str:
        """The probability of a label in words, which say whether it is calibrated."""
        percent = 100 * float(self.probabilities[self._column(label)])
        return f"{percent:.0f} %{' after calibration' if self.is_calibrated else ''}"

    def plot(self, label: str | None = None) -> "Figure":
        """Draw one label: the image, its combined map, a map a stage and the residual, and what adds up to the logit.

        Args:
            label: One of `labels`; the first by default.

        Raises:
            ValueError: The label was not explained.
            MissingDependencyError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingDependencyError("pictures need matplotlib: pip install 'msrn[report]'.") from error

        name = self.labels[0] if label is None else label
        column = self._column(name)
        shown = self.image.copy()
        shown.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
        size = (shown.height, shown.width)
        cells = [
            (f"stage {index + 1}, {own.shape[-2]} x {own.shape[-1]}", own[:, [column]], self.parts.shifts[index])
            for index, own in enumerate(self.parts.stage_maps())
        ]
        if self.parts.residual is not None:
            cells.append(("residual", self.parts.residual[:, [column]], self.parts.shifts[-1]))
        maps = [(title, float(own.sum()), grow(own, size, shift)[0, 0]) for title, own, shift in cells]
        added = float(self.parts.logits[0, column] - self.parts.constant[0, column])
        maps.insert(0, ("all together", added, torch.stack([heat for *_, heat in maps]).sum(dim=0)))
        by_group = self.group_maps(name)
        if by_group:
            strongest = self.groups[name][0]
            shifted = zip(by_group, self.parts.shifts, strict=False)
            of_group = [grow(own[None, [strongest["group"]]], size, shift)[0, 0] for own, shift in shifted]
            title = f"of this, group {strongest['group']}"
            maps.append((title, strongest["contribution"], torch.stack(of_group).sum(dim=0)))
        ratio = size[0] / size[1]
        drawn_ratio = min(max(ratio, 1 / _MOST_PROPORTION), _MOST_PROPORTION)
        heights = (2.5 * drawn_ratio + 0.6, 2.0)
        figure = Figure(figsize=(2.5 * (len(maps) + 1), sum(heights)), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        panels = above.subplots(1, len(maps) + 1)
        panels[0].imshow(shown, aspect=drawn_ratio / ratio)
        drawn = drawn_name(name, 24)
        panels[0].set_title(
            f"{drawn}\n{self.in_percent(name)}", fontsize=10, parse_math=False, fontfamily=font_families([drawn])
        )
        for axes, (title, added, heat) in zip(panels[1:], maps, strict=True):
            axes.imshow(shown.convert("L"), cmap="gray", vmin=-120, vmax=255, aspect=drawn_ratio / ratio)
            most = float(heat.abs().max()) or 1.0  # each map has its own scale; its sum is above it
            opacity = (heat.abs() / most).clamp(0, 1).sqrt().numpy()
            colours: dict[str, Any] = {"cmap": _COLOURS, "vmin": -most, "vmax": most, "alpha": 0.85 * opacity}
            axes.imshow(heat.numpy(), aspect=drawn_ratio / ratio, **colours)
            axes.set_title(f"{title}: {added:+.2f}", fontsize=10)
        for axes in panels:
            axes.set_axis_off()
        left, right = below.subplots(1, 2)
        note = "" if self.parts.is_exact else f"\n{APPROXIMATION}"
        _bars(left, f"adds up to the logit, {float(self.parts.logits[0, column]):+.2f}{note}", self._sums(column))
        strong = [row for row in self.related[name] if abs(row["effect"]) >= LEAST_EFFECT][:_NUM_BARS]
        title = "related labels: what their edge adds to the logit"
        if self.related_edges is None:
            title = "related labels: left out"
        elif not strong:
            title = f"related labels: none moves the logit by {LEAST_EFFECT}"
        _bars(right, title, [(row["label"], row["effect"]) for row in strong])
        return figure

    def save(self, folder: str | Path, *, report: dict[str, Any] | None = None) -> Path:
        """Write a folder with a picture a label and `explanation.json`, in one step; an older one of that name is replaced.

        Args:
            folder: Where.
            report: What `to_dict` returned, where it was called already.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            MSRNError: The folder cannot be written.
        """
        folder = Path(folder)
        with replace_folder(folder) as temporary:
            for name, file_name in zip(self.labels, self.picture_names, strict=True):
                figure = self.plot(name)
                data = io.BytesIO()
                figure.savefig(data, format="png", dpi=110, facecolor="white")
                write_bytes(temporary / file_name, data.getvalue())
            write_json(temporary / JSON_FILE, self.to_dict() if report is None else report)
        return folder

    def _stages_at(self, size: tuple[int, int], columns: Sequence[int]) -> Float[Tensor, "S n H W"]:
        stages = zip(self.parts.stage_maps(), self.parts.shifts, strict=False)
        return torch.stack([grow(own[:, columns], size, shift)[0] for own, shift in stages])

    def _sums(self, column: int) -> list[tuple[str, float]]:
        """The parts of one logit, in words."""
        found = []
        words = {"own": "own", "by_group": "groups", "by_others": "other labels"}
        for index in range(len(self.parts.own)):
            for key, maps in self._by_part().items():
                found.append((f"stage {index + 1}, {words[key]}", float(maps[index][0, column].sum())))
        if self.parts.residual is not None:
            found.append(("residual", float(self.parts.residual[0, column].sum())))
        found.append(("constant", float(self.parts.constant[0, column])))
        return found


def _grid(size: tuple[int, int], most: int = 64) -> tuple[int, int]:
    scale = most / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _peaks(heats: Float[Tensor, "n H W"]) -> list[list[float]]:
    """The middle of the region that adds most, of each map, as fractions of width and height."""
    width = heats.shape[-1]
    found = []
    for place in smooth(heats).flatten(1).argmax(dim=1).tolist():
        row, column = divmod(place, width)
        found.append([(column + 0.5) / width, (row + 0.5) / heats.shape[-2]])
    return found


def _bars(axes: Any, title: str, values: Sequence[tuple[str, float]]) -> None:
    names, sizes = [drawn_name(name, 28) for name, _ in values], [value for _, value in values]
    axes.set_title(title, fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    colours = ["#b2182b" if value > 0 else "#2166ac" for value in sizes]
    axes.barh(range(len(names)), sizes, color=colours, height=0.7)
    axes.set_xlim(1.05 * min([-_LEAST_REACH, *sizes]), 1.05 * max([_LEAST_REACH, *sizes]))
    axes.set_ylim(-0.7, max(_NUM_BARS, len(values)) - 0.3)
    axes.set_yticks(range(len(names)), names, fontsize=9, parse_math=False, fontfamily=font_families(names))
    axes.invert_yaxis()
    axes.axvline(0, color="#5b6677", linewidth=0.8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)


def _file_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return kept[:60] or "label"
