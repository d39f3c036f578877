"""The interface over HTTP."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import msrn
from msrn.errors import LabelMismatchError, ModelError, is_out_of_memory
from msrn.explain import Explanation
from msrn.explain.contributions import grow
from msrn.predict import Predictor
from msrn.server import metrics as prometheus
from msrn.server.access import Access, unless_left
from msrn.server.batching import QueueFullError
from msrn.server.body import FIELD, Bodies, Share, Upload, read_request
from msrn.server.logs import LOGGER, log_failure
from msrn.server.models import Models
from msrn.server.problems import MEDIA_TYPE, Problem, ProblemError, plain
from msrn.server.schemas import (
    PIXEL,
    ExplainedLabel,
    ExplainOptions,
    ExplainRequest,
    ExplainResponse,
    Health,
    HeatMap,
    ImageLabels,
    LabelsResponse,
    ModelResponse,
    PredictOptions,
    PredictRequest,
    PredictResponse,
    ScoredLabel,
)
from msrn.server.service import Service, Tagged
from msrn.server.settings import ServerSettings

STATIC = Path(__file__).parent / "static"
_MAP_CELLS = 56  # of a heat map's longer side

_TITLES = {
    401: "The API key is missing or wrong.",
    404: "No bundle of this name is served.",
    413: "Too many bytes, pixels or images.",
    415: "Not an image, or a content type that is not served.",
    422: "Something in the request cannot be read or is out of range.",
    429: "Too many requests of this client at a time.",
    500: "The network gives no finite numbers for an image.",
    503: "No room for more, or the server is stopping.",
    504: "The answer took too long.",
}
_EXAMPLES: dict[int, dict[str, Any]] = {
    401: {"title": _TITLES[401], "detail": "Send the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."},
    404: {
        "title": _TITLES[404],
        "detail": "The bundles served are pets, scenes. Ask for one of them, or leave 'model' out.",
    },
    413: {
        "title": "The image has too many pixels.",
        "detail": "An image may have 50,000,000 pixels, this one has 20000 x 20000. Send a smaller one.",
        "image": 0,
    },
    415: {
        "title": "Not an image of a known format.",
        "detail": "Expected one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF. Convert the image to JPEG or PNG.",
        "image": 1,
    },
    422: {
        "title": "A field of the request is wrong.",
        "detail": "threshold: Input should be less than or equal to 1. /openapi.json says what is expected.",
    },
    429: {
        "title": "There are too many requests of this client.",
        "detail": "A client may have 64 requests at a time. Wait for an answer before sending more.",
    },
    500: {
        "title": _TITLES[500],
        "detail": "the model's output is not finite. Check its weights: training may have diverged.",
    },
    503: {"title": "The server is busy.", "detail": "256 images wait already. Try again in a moment."},
    504: {
        "title": _TITLES[504],
        "detail": "There was no answer after 30 seconds. Send fewer images, or try again later.",
    },
}
_COUNTS = """# HELP msrn_requests_total Requests answered.
# TYPE msrn_requests_total counter
msrn_requests_total{path="/v1/predict",status="200"} 42.0
"""


def create_app(
    predictors: Mapping[str, Predictor],
    settings: ServerSettings | None = None,
    *,
    load: Callable[[], Mapping[str, Predictor]] | None = None,
) -> FastAPI:
    """The application that serves some predictors.

    Args:
        predictors: By name; the first is what requests get that name none.
        settings: Limits.
        load: Reads the predictors anew, for `app.state.reload`.
    """
    settings = settings or ServerSettings()
    counts = prometheus.Metrics()
    models = Models(predictors, settings, counts.count_batch, counts.waiting.inc)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        models.close()

    app = _App(
        title="msrn",
        version=msrn.__version__,
        summary="Labels of images, and why they have them.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.is_ready = False
    app.state.models = models

    async def reload() -> None:
        """Read all bundles anew; the old ones stay if one cannot be read."""
        if load is None:
            return
        try:
            models.replace(await asyncio.to_thread(load))
        except Exception as error:  # whatever it is, the old ones can serve
            log_failure("the bundles stay as they were", error)
        else:
            LOGGER.info("bundles read anew", extra={"fields": {"models": models.names}})

    app.state.reload = reload
    app.add_middleware(Access, metrics=counts, max_requests_of_client=settings.max_requests_of_client)
    _answer_errors(app)
    key = _key(settings)
    _add_v1(app, models, settings, key)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the process answers", tags=["server"])
    async def healthz() -> Health:
        return Health(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Whether the models can serve", tags=["server"], responses=_problems(503))
    async def readyz() -> Health:
        if not app.state.is_ready:
            raise ProblemError(503, "Not ready.", "The server is starting or stopping. Ask again in a moment.")
        return Health(status="ready")

    @app.get(
        "/metrics",
        summary="Counts in Prometheus' format",
        tags=["server"],
        dependencies=key,
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _COUNTS}}},
            **_problems(401),
        },
    )
    async def show_metrics() -> Response:
        return Response(counts.text(), media_type=prometheus.CONTENT_TYPE)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", _Static(directory=STATIC), name="static")
    return app


class _Static(StaticFiles):
    """Files that belong to this version: browsers ask whether they are still the same, and get others at once."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _App(FastAPI):
    """Describes problems by one schema, and by no other type of content than theirs."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        described["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return described


def _key(settings: ServerSettings) -> list[Any]:
    """What a route depends on where a key is asked for."""
    expected = settings.api_key
    if expected is None:
        return []
    bearer = HTTPBearer(auto_error=False)
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def check(
        token: HTTPAuthorizationCredentials | None = Depends(bearer), key: str | None = Depends(header)
    ) -> None:
        given = key or (token.credentials if token else "")
        if not secrets.compare_digest(given.encode(), expected.encode()):
            detail = "Send the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            raise ProblemError(401, _TITLES[401], detail, headers={"WWW-Authenticate": "Bearer"})

    return [Depends(check)]


def _add_v1(app: FastAPI, models: Models, settings: ServerSettings, key: list[Any]) -> None:
    bodies = Bodies(settings.max_total_bytes)
    model_name = Query(None, description="A bundle's name; by default the first.")

    @app.post(
        "/v1/predict",
        summary="Labels of one image or several",
        tags=["images"],
        dependencies=key,
        response_model=PredictResponse,
        responses=_problems(401, 404, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_body(PredictRequest, PredictOptions, {"top_k": 3}),
    )
    async def predict(request: Request) -> PredictResponse:
        async with _limits(settings, bodies) as share:
            asked, uploads = await read_request(
                request, PredictOptions, settings, share, max_images=settings.max_images
            )
            with models.use(asked.model) as service:
                files = [upload.take() for upload in uploads]
                tagged = await unless_left(request, service.tag(files, share.give_back))
                return await asyncio.to_thread(_answer, service, uploads, tagged, asked)

    @app.post(
        "/v1/explain",
        summary="Why an image has its labels",
        tags=["images"],
        dependencies=key,
        response_model=ExplainResponse,
        responses=_problems(401, 404, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_body(ExplainRequest, ExplainOptions, {"labels": ["dog"]}),
    )
    async def explain(request: Request) -> ExplainResponse:
        async with _limits(settings, bodies) as share:
            asked, uploads = await read_request(request, ExplainOptions, settings, share, max_images=1)
            with models.use(asked.model) as service:
                if not service.can_explain:
                    detail = "Its head has no attention to explain. Ask a bundle whose head is MSRN."
                    raise ProblemError(422, "This bundle cannot be explained.", detail)
                try:
                    data = uploads[0].data
                    found = await unless_left(request, service.explain(data, asked.labels, asked.top_k))
                except LabelMismatchError as error:
                    raise ProblemError(422, "The bundle does not know a label.", str(error)) from None
                return await asyncio.to_thread(_explained, service.name, found)

    @app.get(
        "/v1/labels",
        summary="All labels, their thresholds, groups and neighbours",
        tags=["bundles"],
        dependencies=key,
        responses=_problems(401, 404, 422, 429),
    )
    async def labels(model: str | None = model_name) -> LabelsResponse:
        with models.use(model) as service:
            # Of 10,000 labels it takes seconds, the first time.
            return LabelsResponse(model=service.name, labels=await asyncio.to_thread(getattr, service, "labels"))

    @app.get(
        "/v1/model",
        summary="What a bundle is, and what may be asked",
        tags=["bundles"],
        dependencies=key,
        responses=_problems(401, 404, 422, 429),
    )
    async def model(model: str | None = model_name) -> ModelResponse:
        with models.use(model) as service:
            bundle = service.predictor.bundle
            return ModelResponse(
                name=service.name,
                architecture=plain(bundle.architecture),
                num_labels=len(bundle.label_names),
                input_height=bundle.preprocessing.size[0],
                input_width=bundle.preprocessing.size[1],
                training=plain(bundle.training),
                can_explain=service.can_explain,
                has_fitted_thresholds=bundle.thresholds is not None,
                limits={
                    "images": settings.max_images,
                    "image_bytes": settings.max_image_bytes,
                    "request_bytes": settings.max_request_bytes,
                    "pixels": settings.max_pixels,
                    "seconds": settings.timeout,
                },
                models=models.names,
            )


@asynccontextmanager
async def _limits(settings: ServerSettings, bodies: Bodies) -> AsyncIterator[Share]:
    """Count the bytes of a request; refuse in words what the queue refuses, what takes too long, and what the network cannot."""
    try:
        async with asyncio.timeout(settings.timeout):
            with bodies.share() as share:
                yield share
    except TimeoutError:
        detail = f"There was no answer after {settings.timeout:g} seconds. Send fewer images, or try again later."
        raise ProblemError(504, _TITLES[504], detail) from None
    except QueueFullError:
        detail = f"{settings.max_waiting} images wait already. Try again in a moment."
        raise ProblemError(503, "The server is busy.", detail, headers={"Retry-After": "1"}) from None
    except ModelError as error:
        LOGGER.error("no finite numbers", extra={"fields": {"error": str(error)}})
        raise ProblemError(500, _TITLES[500], str(error)) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        LOGGER.error("memory ran out", extra={"fields": {"error": str(error) or type(error).__name__}})
        detail = "It ran out while this request was worked on. Try again in a moment, or send fewer or smaller images."
        raise ProblemError(503, "The server has no more memory.", detail, headers={"Retry-After": "1"}) from None


def _answer(service: Service, uploads: list[Upload], tagged: list[Tagged], asked: PredictOptions) -> PredictResponse:
    """Of many images and all of 10,000 labels it takes seconds, so it is not for the event loop."""
    pairs = zip(uploads, tagged, strict=True)
    return PredictResponse(
        model=service.name, predictions=[_image_labels(service, upload, own, asked) for upload, own in pairs]
    )


def _image_labels(service: Service, upload: Upload, tagged: Tagged, asked: PredictOptions) -> ImageLabels:
    predictor = service.predictor
    ranked = predictor.rank(tagged.probs, threshold=asked.threshold, top_k=asked.top_k)
    return ImageLabels(
        name=upload.name,
        width=tagged.width,
        height=tagged.height,
        labels=[
            ScoredLabel(name=own.name, probability=own.probability, threshold=service.thresholds[own.name])
            for own in ranked
        ],
    )


def _explained(name: str, found: Explanation) -> ExplainResponse:
    height, width = found.size
    scale = _MAP_CELLS / max(found.size)
    cells = (max(1, round(height * scale)), max(1, round(width * scale)))
    parts = found.parts
    stages = {
        f"stage {index + 1}": grow(own, cells, shift)[0]
        for index, (own, shift) in enumerate(zip(parts.stage_maps(), parts.shifts, strict=False))
    }
    if parts.residual is not None:
        stages["residual"] = grow(parts.residual, cells, parts.shifts[-1])[0]
    maps = {"all": found.heatmaps_at(*cells), **stages}
    told = found.to_dict()
    return ExplainResponse(
        model=name,
        width=width,
        height=height,
        is_calibrated=told["is_calibrated"],
        note=told["note"],
        labels=[
            ExplainedLabel(
                name=label,
                probability=float(found.probabilities[column]),
                logit=float(parts.logits[0, column]),
                maps=[
                    HeatMap(stage=stage, height=cells[0], width=cells[1], values=_rounded(own[column]))
                    for stage, own in maps.items()
                ],
                details=told["labels"][column],
            )
            for column, label in enumerate(found.labels)
        ],
    )


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]


def _body(whole: type[Any], options: type[Any], example: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a request that comes as JSON or as a form."""
    form = options.model_json_schema()
    form["properties"] = {
        FIELD: {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "Image files.",
        },
        **form["properties"],
    }
    form["required"] = [FIELD]
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form, "example": {FIELD: ["(bytes of a file)"], **example}},
                "application/json": {"schema": whole.model_json_schema(), "example": {FIELD: [PIXEL], **example}},
            },
        }
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of answers that are problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": _TITLES[status],
            "content": {MEDIA_TYPE: {"schema": schema, "example": {"status": status, **_EXAMPLES[status]}}},
        }
        for status in statuses
    }


def _answer_errors(app: FastAPI) -> None:
    """Every error is answered with a problem; those that nobody foresaw by `Access`."""

    @app.exception_handler(ProblemError)
    async def problem(_: Request, error: ProblemError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return ProblemError(422, "A parameter is wrong.", f"{where}: {first['msg']}.").response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        detail = "See /openapi.json for what is served."
        return ProblemError(error.status_code, error.detail, detail, headers=headers).response()
