"""What tests of training share."""

import pytest
from tiny_training import write_pictures

from msrn.data import LabelledImages


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Sixteen pictures whose labels can be seen in their colour."""
    return write_pictures(tmp_path_factory.mktemp("colours"))
