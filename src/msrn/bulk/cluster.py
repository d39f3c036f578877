"""The engine on Ray Data: a network in every worker, on this machine or a cluster; a worker's death loses nothing."""

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from msrn.bulk.local import Row, to_rows
from msrn.bulk.reader import empty_batch, read_into
from msrn.bulk.sources import ImageRef
from msrn.data.packed import TarMember
from msrn.errors import MissingDependencyError, MSRNError
from msrn.predict import Predictor

# Images that are handed to the cluster at a time: this many names and rows are held here.
_ROUND = 65_536


class _Tagger:
    """What a worker runs.

    Args:
        bundle: Ray's reference to the bundle, which is sent once to every machine.
        bf16: See `Predictor`.
        num_threads: For the network, on a processor.
        options: Threshold and top k.
    """

    def __init__(self, bundle: Any, *, bf16: bool, num_threads: int, options: dict[str, Any]) -> None:
        import ray

        torch.set_num_threads(num_threads)
        self.predictor = Predictor(ray.get(bundle), bf16=bf16)
        self.options = options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        preprocessing = self.predictor.bundle.preprocessing
        images = empty_batch(len(batch["ref"]), preprocessing)
        errors = read_into(images, list(batch["ref"]), preprocessing)
        images = images[: errors.count(None)]
        probs = self.predictor.probs(images) if len(images) else ()
        rows = to_rows(self.predictor, [str(name) for name in batch["name"]], errors, probs, **self.options)
        return {"row": [json.dumps(row) for row in rows]}


def predict(
    predictor: Predictor,
    refs: Iterator[ImageRef],
    *,
    threshold: float | None,
    top_k: int | None,
    batch_size: int,
    num_workers: int | None,
) -> Generator[list[Row], None, None]:
    """Rows of a stream of images, some at a time, in its order.

    Ray is started on this machine, or joined where RAY_ADDRESS says. Every worker has a GPU if the cluster has any, else a
    processor, wherever the predictor is. Paths have to be readable from the workers.

    Args:
        predictor: The model.
        refs: The images.
        threshold: See `Predictor.predict`.
        top_k: See `Predictor.predict`.
        batch_size: Images a pass.
        num_workers: Workers; by default as many as the cluster has GPUs, or processors.

    Raises:
        MissingDependencyError: Ray is not installed.
        MSRNError: The cluster cannot be reached, or the job failed there.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingDependencyError("--engine ray needs Ray: pip install 'msrn[ray]'.") from error

    was_started = ray.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Ray takes SIGTERM for itself, and would end this process with another exit code than everyone expects.
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if not was_started:
                ray.init(
                    log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, configure_logging=False
                )
        except Exception as error:  # whatever keeps a cluster from answering
            raise MSRNError(
                f"Ray cannot be started ({error}). Check RAY_ADDRESS, or leave --engine ray out."
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        try:
            yield from _stream(
                predictor,
                refs,
                batch_size=batch_size,
                num_workers=num_workers,
                options={"threshold": threshold, "top_k": top_k},
            )
        finally:
            if not was_started:
                ray.shutdown()


def _absolute(ref: ImageRef) -> ImageRef:
    """A reference that holds in another folder, where workers run."""
    if isinstance(ref, Path):
        return ref.absolute()
    if isinstance(ref, TarMember):
        return TarMember(ref.archive.absolute(), ref.member, ref.offset, ref.size)
    return ref


def _stream(
    predictor: Predictor,
    refs: Iterator[ImageRef],
    *,
    batch_size: int,
    num_workers: int | None,
    options: dict[str, Any],
) -> Generator[list[Row], None, None]:
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0))
        count = num_workers or num_gpus or max(1, int(resources.get("CPU", 1)))
        bundle = ray.put(predictor.bundle)
        while chunk := list(islice(refs, _ROUND)):
            dataset = ray.data.from_items(
                [{"ref": _absolute(ref), "name": str(ref)} for ref in chunk],
                override_num_blocks=-(-len(chunk) // batch_size),
            )
            tagged = dataset.map_batches(
                _Tagger,
                fn_constructor_args=(bundle,),
                fn_constructor_kwargs={"bf16": predictor.bf16, "num_threads": 1, "options": options},
                batch_size=batch_size,
                concurrency=count,
                num_gpus=1 if num_gpus else 0,
            )
            for batch in tagged.iter_batches(batch_size=None):
                yield [json.loads(row) for row in batch["row"]]
    except ray.exceptions.RayError as error:
        raise MSRNError(
            f"the job failed on the cluster ({' '.join(str(error).split())[:300]}). The same command goes on where it stopped."
        ) from error
