"""Stratification for many labels: which image, or group of images, goes to which part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int8

_ROWS_AT_ONCE = 65536
# Units of each part that an exchange looks at, and how often it goes through all labels.
_POOL = 256
_MAX_PASSES = 10
# Deviations up to half a positive, a spread of 1, are as near as whole positives come; the rest is rounding.
_NEAREST = 1 + 1e-9
# Of figures, so that files are the same on every machine.
_DIGITS = 9


@dataclass(frozen=True)
class Positives:
    """How many positives of which labels each unit, an image or a group of images, holds: compressed sparse rows.

    Attributes:
        starts: Unit i owns the entries starts[i] to starts[i + 1] of the other arrays.
        labels: Columns of the target, without repeats in a unit.
        counts: Positives of that label in the unit; 1 where a unit is an image.
        sizes: Images of each unit.
        num_labels: Columns of the target.
    """

    starts: Int[np.ndarray, " starts"]
    labels: Int[np.ndarray, " entries"]
    counts: Int[np.ndarray, " entries"]
    sizes: Int[np.ndarray, " units"]
    num_labels: int

    @classmethod
    def of_images(cls, target: Int8[np.ndarray, "N L"]) -> "Positives":
        """Every image is a unit. Unknown entries count as not positive."""
        num_images, num_labels = target.shape
        # In blocks: a mask of the whole target would take as much memory as the target.
        blocks = [np.nonzero(target[row : row + _ROWS_AT_ONCE] == 1) for row in range(0, num_images, _ROWS_AT_ONCE)]
        per_image = [np.bincount(rows, minlength=_ROWS_AT_ONCE) for rows, _ in blocks]
        starts = _starts(np.concatenate([*per_image, np.zeros(0, np.int64)])[:num_images])
        labels = np.concatenate([*(columns for _, columns in blocks), np.zeros(0, np.int64)])
        return cls(starts, labels, np.ones_like(labels), np.ones(num_images, np.int64), num_labels)

    def group(self, unit_of_image: Int[np.ndarray, " N"]) -> "Positives":
        """Units that are summed over images; `unit_of_image` counts them from 0 without gaps."""
        units = np.repeat(unit_of_image, np.diff(self.starts))
        keys, counts = np.unique(units * self.num_labels + self.labels, return_counts=True)
        sizes = np.bincount(unit_of_image)
        starts = _starts(np.bincount(keys // self.num_labels, minlength=len(sizes)))
        return Positives(starts, keys % self.num_labels, counts, sizes, self.num_labels)

    def with_sizes(self) -> "Positives":
        """With one label more, the last: being an image."""
        ends = self.starts[1:]
        labels = np.insert(self.labels, ends, self.num_labels)
        counts = np.insert(self.counts, ends, self.sizes)
        return Positives(self.starts + np.arange(len(self.starts)), labels, counts, self.sizes, self.num_labels + 1)

    def entries(self, units: Int[np.ndarray, " U"]) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
        """For all entries of some units: which of `units`, and the position in `labels` and `counts`."""
        lengths = self.starts[units + 1] - self.starts[units]
        which = np.repeat(np.arange(len(units)), lengths)
        return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths - self.starts[units], lengths)

    def count(self, part: Int8[np.ndarray, " units"], num_parts: int) -> Int[np.ndarray, "P L"]:
        """Positives of each label in each part."""
        keys = np.repeat(part.astype(np.int64), np.diff(self.starts)) * self.num_labels + self.labels
        counts = np.bincount(keys, weights=self.counts, minlength=num_parts * self.num_labels)
        return counts.astype(np.int64).reshape(num_parts, self.num_labels)


def stratify(positives: Positives, sizes: Sequence[int], *, seed: int) -> Int8[np.ndarray, " units"]:
    """Share units out such that every part holds nearly its share of every label's positives.

    First, labels are served from the rarest to the most frequent, and each of their units goes to the part that still
    lacks most positives of the label (iterative stratification). That leaves frequent labels off by what the rare ones
    took. So then units are exchanged between parts while the sum over parts and labels of
    (positives - share x all positives)^2 / all positives falls.

    Args:
        positives: The units.
        sizes: Images of each part, at least 1, in sum all images. They come out exactly where every unit is one image;
            larger units come as near as the search gets, and no part is left without a unit.
        seed: Orders the units among equals.

    Returns:
        The part of each unit, counted from 0.

    Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011, for the first step.
    """
    rng = np.random.default_rng(seed)
    part = _serve_labels(positives, sizes, rng)
    for empty in np.flatnonzero(np.bincount(part, minlength=len(sizes)) == 0):
        fullest = np.flatnonzero(part == np.bincount(part).argmax())
        part[fullest[positives.sizes[fullest].argmin()]] = empty
    _Exchange(positives, sizes, part, rng).run()
    return part


def _serve_labels(positives: Positives, sizes: Sequence[int], rng: np.random.Generator) -> Int8[np.ndarray, " units"]:
    """Iterative stratification, in plain lists: a unit has few labels, and numpy is slow on few."""
    num_units, num_parts = len(positives.sizes), len(sizes)
    shares = np.array(sizes) / sum(sizes)
    rank = rng.permutation(num_units)
    units_of_label = _units_by_label(positives, rank)
    num_left = positives.count(np.zeros(num_units, np.int8), 1)[0]  # (L,) positives of units that are in no part yet
    lacking = (num_left[:, None] * shares).tolist()  # (L, P) positives that each part still lacks
    room = list(sizes)  # images that each part still takes
    part = np.full(num_units, -1, dtype=np.int8)
    starts, labels, counts = positives.starts.tolist(), positives.labels.tolist(), positives.counts.tolist()

    is_served = np.zeros(positives.num_labels, dtype=np.bool_)
    for _ in range(positives.num_labels):
        label = int(np.where(is_served, np.iinfo(np.int64).max, num_left).argmin())
        is_served[label] = True
        units = units_of_label[label]
        units = units[part[units] < 0]
        lacks = lacking[label]
        chosen = []
        for unit, size in zip(units.tolist(), positives.sizes[units].tolist(), strict=True):
            roomy = [p for p in range(num_parts) if room[p] >= size]
            # Between equals, the part that has more room for its size.
            to = max(roomy, key=lambda p: (lacks[p], room[p] / sizes[p])) if roomy else room.index(max(room))
            chosen.append(to)
            room[to] -= size
            for entry in range(starts[unit], starts[unit + 1]):
                lacking[labels[entry]][to] -= counts[entry]
        part[units] = chosen
        _, entries = positives.entries(units)
        np.subtract.at(num_left, positives.labels[entries], positives.counts[entries])
    rest = np.flatnonzero(part < 0)  # nothing is present in these
    for unit in rest[np.lexsort((rank[rest], -positives.sizes[rest]))].tolist():
        to = room.index(max(room))
        part[unit] = to
        room[to] -= int(positives.sizes[unit])
    return part


class _Exchange:
    """Exchanges units between two parts at a time, for the label that is furthest off, where it helps all in all.

    Single images are swapped, which keeps the sizes of the parts. Larger units also move alone, and the sizes count as a
    label whose deviation costs much.
    """

    def __init__(
        self, positives: Positives, sizes: Sequence[int], part: Int8[np.ndarray, " units"], rng: np.random.Generator
    ) -> None:
        self.can_move = bool((positives.sizes != 1).any())
        self.positives = positives.with_sizes() if self.can_move else positives
        self.part = part
        self.rng = rng
        counts = self.positives.count(part, len(sizes))  # (P, L)
        total = counts.sum(axis=0)
        self.deviation = counts - np.array(sizes)[:, None] / sum(sizes) * total  # (P, L)
        self.weights = 1 / np.maximum(total, 1)  # (L,)
        if self.can_move:
            self.weights[-1] = 1.0

    def run(self) -> None:
        """Go through the labels that are off until nothing helps."""
        units_of_label = _units_by_label(self.positives, np.arange(len(self.part)))
        for _ in range(_MAX_PASSES):
            spread = np.ptp(self.deviation, axis=0)
            off = np.flatnonzero(spread > _NEAREST)
            has_helped = False
            for label in off[np.argsort(-self.weights[off] * spread[off] ** 2, kind="stable")]:
                above, below = self.deviation[:, label].argmax(), self.deviation[:, label].argmin()
                if self.deviation[above, label] - self.deviation[below, label] > _NEAREST:
                    units = units_of_label[label]
                    givers = self._draw(units[self.part[units] == above])
                    takers = self._draw(np.flatnonzero(self.part == below))
                    has_helped |= self._exchange(int(above), int(below), givers, takers)
            if not has_helped:
                break

    def _draw(self, units: Int[np.ndarray, " U"]) -> Int[np.ndarray, " D"]:
        return units if len(units) <= _POOL else self.rng.choice(units, _POOL, replace=False)

    def _exchange(self, above: int, below: int, givers: Int[np.ndarray, " A"], takers: Int[np.ndarray, " B"]) -> bool:
        """Exchange the best pairs of one unit of `above` and one of `below`, if any helps; the last taker is nobody.

        Moving u positives of each label from `above` to `below` changes the sum of weighted squares by
        2 x sum over labels of weight u (u + deviation below - deviation above).
        """
        names = np.unique(self.positives.labels[self.positives.entries(np.concatenate([givers, takers]))[1]])
        give = self._dense(givers, names)  # (A, K)
        take = np.concatenate([self._dense(takers, names), np.zeros((1, len(names)))])  # (B + 1, K)
        weights = self.weights[names]
        square = (give**2 @ weights)[:, None] + take**2 @ weights - 2 * (give * weights) @ take.T  # (A, B + 1)
        num_above = int((self.part == above).sum()) if self.can_move else 0
        has_helped = False
        while True:
            # No part gives its last unit away, and single images are only swapped.
            square[:, -1] = square[:, -1] if num_above > 1 else np.inf
            slope = weights * (self.deviation[below, names] - self.deviation[above, names])
            change = square + (give @ slope)[:, None] - take @ slope
            best, other = divmod(int(change.round(12).argmin()), len(take))
            if change[best, other] > -1e-10:
                return has_helped
            has_helped = True
            moved = give[best] - take[other]
            self.deviation[above, names] -= moved
            self.deviation[below, names] += moved
            self.part[givers[best]] = below
            square[best] = np.inf
            if other < len(takers):
                self.part[takers[other]] = above
                square[:, other] = np.inf
            else:
                num_above -= 1

    def _dense(self, units: Int[np.ndarray, " U"], names: Int[np.ndarray, " K"]) -> Float[np.ndarray, "U K"]:
        """Positives of some units, a column for each of `names`."""
        which, entries = self.positives.entries(units)
        dense = np.zeros((len(units), len(names)))
        dense[which, np.searchsorted(names, self.positives.labels[entries])] = self.positives.counts[entries]
        return dense


@dataclass(frozen=True)
class Deviations:
    """How far positives are from being shared out as the images are.

    Attributes:
        largest_share: Largest |share of a label's positives in a part - the part's share of the images|, a fraction.
            Only labels with enough positives for one in every part count; None without such a label.
        mean_share: Their mean.
        largest_count: Largest |positives in a part - the part's share of all positives|, over all labels. Below 1 is as
            near as whole images come.
        mean_count: Their mean.
    """

    largest_share: float | None
    mean_share: float | None
    largest_count: float
    mean_count: float

    @classmethod
    def of(cls, counts: Int[np.ndarray, "P L"], sizes: Int[np.ndarray, " P"], part: int | None = None) -> "Deviations":
        """Of one part, or of all.

        Args:
            counts: Positives of each label in each part.
            sizes: Images of each part.
            part: The part; by default all of them.

        Example:
            >>> Deviations.of(np.array([[3, 1], [1, 1]]), np.array([5, 5]))
            Deviations(largest_share=0.25, mean_share=0.125, largest_count=1.0, mean_count=0.5)
        """
        shares = sizes / sizes.sum()
        total = counts.sum(axis=0)
        off = np.abs(counts - shares[:, None] * total)  # (P, L)
        off = off if part is None else off[[part]]
        is_enough = total * shares.min() >= 1
        off_share = off[:, is_enough] / total[is_enough]
        return cls(
            largest_share=round(float(off_share.max()), _DIGITS) if off_share.size else None,
            mean_share=round(float(off_share.mean()), _DIGITS) if off_share.size else None,
            largest_count=round(float(off.max(initial=0)), _DIGITS),
            mean_count=round(float(off.mean()), _DIGITS) if off.size else 0.0,
        )

    @classmethod
    def mean(cls, many: "Sequence[Deviations]") -> "Deviations":
        """The mean of each figure over several splits of the same images."""

        def mean(name: str) -> float | None:
            values = [getattr(one, name) for one in many]
            return None if None in values else round(float(np.mean(values)), _DIGITS)

        return cls(*(mean(name) for name in cls.__dataclass_fields__))  # type: ignore[arg-type]


def _units_by_label(positives: Positives, rank: Int[np.ndarray, " units"]) -> list[Int[np.ndarray, " U"]]:
    """The units that hold each label, those with most positives first, equals by rank."""
    units = np.repeat(np.arange(len(positives.sizes)), np.diff(positives.starts))
    order = np.lexsort((rank[units], -positives.counts, positives.labels))
    return np.split(units[order], np.cumsum(np.bincount(positives.labels, minlength=positives.num_labels))[:-1])


def _starts(lengths: Int[np.ndarray, " N"]) -> Int[np.ndarray, " starts"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
