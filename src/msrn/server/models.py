"""The bundles that are served, by name; others take their place without a request being dropped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from msrn.errors import BundleError
from msrn.predict import Predictor, load
from msrn.server.problems import ProblemError
from msrn.server.service import Service
from msrn.server.settings import ServerSettings


def name_bundles(bundles: list[str]) -> dict[str, str]:
    """Names of bundles: as given by NAME=BUNDLE, or from their folders.

    Example:
        >>> name_bundles(["runs/scenes/bundle", "pets=runs/a/bundle"])
        {'scenes': 'runs/scenes/bundle', 'pets': 'runs/a/bundle'}

    Raises:
        BundleError: Two have the same name.
    """
    found: dict[str, str] = {}
    for given in bundles:
        name, equals, bundle = given.partition("=")
        if not equals or Path(given).exists():
            path = Path(given)
            bundle, name = given, path.parent.name if path.name == "bundle" and path.parent.name else path.name
        name = name.strip() or "model"
        if name in found:
            raise BundleError(f"two bundles have the name '{name}'. Name them: OTHER={bundle}.")
        found[name] = bundle
    return found


def load_predictors(bundles: Mapping[str, str], device: str | None = None) -> dict[str, Predictor]:
    """Predictors of bundles by name, each of which has predicted once.

    Raises:
        BundleError: One is not a whole bundle.
        ModelError: One predicts nothing finite.
    """
    found = {}
    for name, bundle in bundles.items():
        found[name] = load(bundle, device=device)
        found[name].probs(torch.zeros(1, 3, *found[name].bundle.preprocessing.size))
    return found


@dataclass
class _Entry:
    service: Service
    users: int = 0
    is_old: bool = False


class Models:
    """Services by name.

    Args:
        predictors: What is served; the first is what requests get that name none.
        settings: Limits.
        on_batch: Called with a name and the number of images of each batch.
        on_waiting: Called with how many more images wait than before, or fewer.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        settings: ServerSettings,
        on_batch: Callable[[str, int], None] = lambda name, size: None,
        on_waiting: Callable[[int], None] = lambda change: None,
    ) -> None:
        self.settings = settings
        self.on_batch = on_batch
        self.on_waiting = on_waiting
        self._entries = self._make(predictors)

    @property
    def names(self) -> list[str]:
        """Names of the bundles served."""
        return list(self._entries)

    @contextmanager
    def use(self, name: str | None) -> Iterator[Service]:
        """A service, which stays whole until the block ends.

        Raises:
            ProblemError: 404 for a name that is not served.
        """
        entry = self._entries.get(self.names[0] if name is None else name)
        if entry is None:
            detail = f"The bundles served are {', '.join(self.names)}. Ask for one of them, or leave 'model' out."
            raise ProblemError(404, "No bundle of this name is served.", detail)
        entry.users += 1
        try:
            yield entry.service
        finally:
            entry.users -= 1
            if entry.is_old and not entry.users:
                entry.service.close()

    def replace(self, predictors: Mapping[str, Predictor]) -> None:
        """Serve others from now on; requests under way end with those they began with."""
        old, self._entries = self._entries, self._make(predictors)
        self._retire(old)

    def close(self) -> None:
        """Let all threads go once they have nothing to do."""
        self._retire(self._entries)

    def _make(self, predictors: Mapping[str, Predictor]) -> dict[str, _Entry]:
        return {
            name: _Entry(Service(name, predictor, self.settings, partial(self.on_batch, name), self.on_waiting))
            for name, predictor in predictors.items()
        }

    @staticmethod
    def _retire(entries: Mapping[str, _Entry]) -> None:
        for entry in entries.values():
            entry.is_old = True
            if not entry.users:
                entry.service.close()
