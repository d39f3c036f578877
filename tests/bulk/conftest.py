"""A small trained bundle's stand-in, and photos of many kinds."""

from pathlib import Path

import pytest
from tiny_bundle import noise


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of mixed sizes in a tree, one damaged, one that is no image."""
    folder = tmp_path / "photos"
    for number in range(12):
        path = folder / ("b" if number % 3 == 0 else "a/deeper" if number % 3 == 1 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(100 + number).save(path)
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    (folder / "notes.txt").write_text("no image")
    return folder
