"""What requests and answers of the server look like."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


_MOST_LETTERS = 1000  # of a label: one that is not known is compared with all that are

Model = Annotated[str | None, Field(description="A bundle's name; by default the first.", examples=[None])]


class PredictOptions(BaseModel):
    """What is asked about images."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None, ge=0, le=1, description="Keep labels with at least this probability; by default each label's own."
    )
    top_k: int | None = Field(None, ge=1, le=1_000_000, description="Keep at most this many labels.")
    model: Model = None


class PredictRequest(PredictOptions):
    """Images in JSON, and what is asked about them."""

    images: list[str] = Field(min_length=1, description="Image files in base64.", examples=[[PIXEL]])


class ExplainOptions(BaseModel):
    """What is to be explained."""

    model_config = ConfigDict(extra="forbid")

    labels: list[Annotated[str, Field(max_length=_MOST_LETTERS)]] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="Labels to explain; by default the most probable.",
        examples=[None],
    )
    top_k: int = Field(3, ge=1, le=16, description="How many labels where none are named.")
    model: Model = None


class ExplainRequest(ExplainOptions):
    """An image in JSON, and what is to be explained."""

    images: list[str] = Field(min_length=1, max_length=1, description="One image file in base64.", examples=[[PIXEL]])


class ScoredLabel(BaseModel):
    """A label of an image."""

    name: str
    probability: float = Field(ge=0, le=1)
    threshold: float = Field(description="The label's own threshold; above 1 for a label that is never predicted.")


class ImageLabels(BaseModel):
    """The labels of one image, best first."""

    name: str | None = Field(description="The file name that was sent with it.")
    width: int
    height: int
    labels: list[ScoredLabel]


class PredictResponse(BaseModel):
    """Labels of every image, in order."""

    model_config = _example(
        {
            "model": "scenes",
            "predictions": [
                {
                    "name": "photo.jpg",
                    "width": 640,
                    "height": 480,
                    "labels": [
                        {"name": "dog", "probability": 0.93, "threshold": 0.5},
                        {"name": "ball", "probability": 0.61, "threshold": 0.45},
                    ],
                }
            ],
        }
    )

    model: str
    predictions: list[ImageLabels]


class HeatMap(BaseModel):
    """What each cell of an image adds to a label's score."""

    stage: str = Field(description="`all`, `stage 1` (the finest) and so on, or `residual`.")
    height: int
    width: int
    values: list[list[float]] = Field(description="Rows from the top; in units of the logit.")


class ExplainedLabel(BaseModel):
    """Why one label has its score."""

    name: str
    probability: float
    logit: float
    maps: list[HeatMap]
    details: dict[str, Any] = Field(description="As `msrn explain --json` has them.")


class ExplainResponse(BaseModel):
    """Why an image has its labels."""

    model_config = _example(
        {
            "model": "scenes",
            "width": 640,
            "height": 480,
            "is_calibrated": False,
            "labels": [
                {
                    "name": "dog",
                    "probability": 0.93,
                    "logit": 2.59,
                    "maps": [{"stage": "all", "height": 2, "width": 3, "values": [[0.1, 0.9, 0.2], [0.0, 1.1, 0.3]]}],
                    "details": {"name": "dog", "probability": 0.93, "logit": 2.59, "peak": [0.5, 0.75]},
                }
            ],
        }
    )

    model: str
    width: int
    height: int
    is_calibrated: bool = Field(description="Whether probabilities are others than the sigmoid of the logits.")
    note: str | None = Field(None, description="Says so where the parts of a logit are an approximation.")
    labels: list[ExplainedLabel]


class Label(BaseModel):
    """A label of a bundle."""

    name: str
    threshold: float
    group: int | None = Field(description="The group it belongs to most.")
    neighbours: list[str] = Field(description="The labels whose semantics it attends to.")


class LabelsResponse(BaseModel):
    """All labels of a bundle, in the order of the network."""

    model_config = _example(
        {
            "model": "scenes",
            "labels": [
                {"name": "dog", "threshold": 0.5, "group": 0, "neighbours": ["ball"]},
                {"name": "ball", "threshold": 0.45, "group": 0, "neighbours": []},
            ],
        }
    )

    model: str
    labels: list[Label]


class ModelResponse(BaseModel):
    """What a bundle is."""

    model_config = _example(
        {
            "name": "scenes",
            "architecture": {"name": "msrn", "backbone": "resnet101"},
            "num_labels": 12,
            "input_height": 448,
            "input_width": 448,
            "training": {"recipe": "scenes"},
            "can_explain": True,
            "has_fitted_thresholds": True,
            "limits": {"images": 32, "image_bytes": 20000000, "pixels": 50000000, "seconds": 30},
            "models": ["scenes", "pets"],
        }
    )

    name: str
    architecture: dict[str, Any]
    num_labels: int
    input_height: int
    input_width: int
    training: dict[str, Any]
    can_explain: bool
    has_fitted_thresholds: bool = Field(description="Whether thresholds were fitted on validation images.")
    limits: dict[str, float]
    models: list[str] = Field(description="All bundles that are served.")


class Health(BaseModel):
    """Whether the server is there."""

    model_config = _example({"status": "ok"})

    status: str
