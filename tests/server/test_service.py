"""Many requests at a time give what the predictor gives."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msrn.predict import load
from msrn.server.problems import ProblemError
from msrn.server.service import Service, Tagged
from msrn.server.settings import ServerSettings


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_requests_together_have_the_predictors_probabilities(bundle_dir: Path) -> None:
    predictor = load(bundle_dir, device="cpu")
    files = [png(seed) for seed in range(12)]
    expected = [predictor.predict(Image.open(io.BytesIO(data)), threshold=0.0)[0] for data in files]

    async def main() -> list[Tagged]:
        service = Service("tiny", predictor, ServerSettings(batch_size=5))
        requests = [service.tag(files[:3]), service.tag(files[3:4]), service.tag(files[4:])]
        found = [own for request in await asyncio.gather(*requests) for own in request]
        with pytest.raises(ProblemError) as caught:
            await service.tag([files[0], b"no"])
        assert caught.value.image == 1
        service.close()
        return found

    for tagged, prediction in zip(asyncio.run(main()), expected, strict=True):
        for label in prediction.labels:
            assert abs(float(tagged.probs[predictor.label_names.index(label.name)]) - label.probability) < 1e-4
