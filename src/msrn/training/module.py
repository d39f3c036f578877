"""What is trained: a model, its loss, its optimizer and its validation metric."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from msrn.data.loader import Batch
from msrn.data.mixing import BatchMixing
from msrn.errors import NonFiniteLossError, TrainingError
from msrn.metrics import MultilabelMetrics
from msrn.models import MSRN
from msrn.processes import rank_and_world_size
from msrn.training.distributed import average_batch_norms, raise_together, share_of_mean
from msrn.training.losses import multilabel_soft_margin_loss
from msrn.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer, build_schedule

VALIDATION_METRICS = ("mAP", "CF1", "OF1")


class MSRNModule(pl.LightningModule):
    """Trains any of our models; logs `train/loss`, `val/loss`, `val/mAP`, `val/CF1` and `val/OF1` every epoch.

    Args:
        model: From images (B, 3, H, W) to logits (B, L).
        label_names: The labels, in the order of the logits.
        loss: From logits and target to a mean over known labels.
        group_loss_weight: Weight of the group loss of an MSRN.
        optimizer: Optimizer settings.
        schedule: Learning-rate schedule settings.
        mixing: Mixes the images of a training batch with one another.
        image_paths: Training images by the batch's `index`, to name those of a batch whose loss is not finite.
        val_image_paths: Validation images, likewise.

    Raises:
        NonFiniteLossError: The training or validation loss became NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        label_names: Sequence[str],
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = multilabel_soft_margin_loss,
        group_loss_weight: float = 1e-4,
        optimizer: OptimizerSettings | None = None,
        schedule: ScheduleSettings | None = None,
        mixing: BatchMixing | None = None,
        image_paths: Sequence[Any] = (),
        val_image_paths: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.group_loss_weight = group_loss_weight
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.schedule_settings = schedule or ScheduleSettings()
        self.mixing = mixing
        self.image_paths = image_paths
        self.val_image_paths = val_image_paths
        self.val_metrics = MultilabelMetrics(label_names)
        self._val_error: NonFiniteLossError | None = None
        # Now: a model that is sharded over processes shows pieces of its matrices only.
        self._matrices = frozenset(name for name, parameter in model.named_parameters() if parameter.ndim > 1)

    def _forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The logits of every path that learns, and the group loss."""
        if not isinstance(self.model, MSRN):
            return [self.model(images)], images.new_zeros(())
        label_groups = self.model.embed()
        paths = self.model.supervised(images, label_groups)
        return list(paths), self.model.group_loss(label_groups, weight=self.group_loss_weight)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch; the label embeddings are computed once."""
        images, target = batch["images"], batch["target"]
        if self.mixing is not None:
            images, target = self.mixing(images, target, epoch=self.current_epoch, batch_index=batch_index)
        images = images.contiguous(memory_format=torch.channels_last)
        try:
            paths, penalty = self._forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            # What PyTorch's batch norms say of one number a channel, of which there is no variance.
            raise TrainingError(
                f"batch norms need more than one number a channel, and a batch of {len(images)} of {images.shape[-2]} x "
                f"{images.shape[-1]} gives one. Set data.batch_size to 2 or more, a larger data.size, or "
                "model.freeze_batch_norm=true with model.normalize=false."
            ) from error
        # Each path learns as if it were alone: their losses are added.
        loss = torch.stack([self.loss(logits, target) for logits in paths]).sum()
        total = loss + penalty
        is_finite = torch.isfinite(total)
        _, world_size = rank_and_world_size()
        if world_size > 1:
            share, can_go_on = share_of_mean(loss, target, is_finite)
            if not can_go_on:
                raise_together(
                    None
                    if is_finite
                    else self._not_finite("loss", total, "batch", batch_index, batch, torch.stack(paths).sum(0))
                )
            total = share + penalty  # the group loss is the same everywhere, and its mean too
        elif not is_finite:
            raise self._not_finite("loss", total, "batch", batch_index, batch, torch.stack(paths).sum(0))
        self.log("train/loss", total, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return total

    def on_after_backward(self) -> None:
        """Let all processes go on with the same statistics; the backward pass needs those of its own."""
        _, world_size = rank_and_world_size()
        if world_size > 1:
            average_batch_norms(self.model)

    def on_validation_epoch_start(self) -> None:
        """Forget what went wrong before."""
        self._val_error = None

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Collect the probabilities of one batch."""
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        logits = self.model(images)
        loss = self.loss(logits, batch["target"])
        if not torch.isfinite(loss) or not torch.isfinite(logits).all():
            error = self._not_finite("validation loss", loss, "validation batch", batch_index, batch, logits)
            _, world_size = rank_and_world_size()
            if world_size == 1:
                raise error
            self._val_error = self._val_error or error  # the others are not asked before the end of the epoch
            return
        # A mean over the known labels of all batches of all processes.
        known = int((batch["target"] >= 0).sum())
        self.log("val/loss", loss, on_epoch=True, batch_size=known, sync_dist=True)
        self.val_metrics.update(logits.double().sigmoid(), batch["target"])

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics; NaN where no label has a positive."""
        raise_together(self._val_error)
        report = self.val_metrics.compute()
        for name in VALIDATION_METRICS:
            value = report[name]
            self.log(f"val/{name}", float("nan") if value is None else value)
        self.val_metrics.reset()

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule moved every step."""
        optimizer = build_optimizer(self.model, self.optimizer_settings, matrices=self._matrices)
        max_epochs = self.trainer.max_epochs or 1
        num_steps = int(self.trainer.estimated_stepping_batches)
        factor = build_schedule(
            self.schedule_settings, steps_per_epoch=max(1, num_steps // max_epochs), max_epochs=max_epochs
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients together, also where every process holds a part of each."""
        sharded = self.trainer.strategy.model
        if isinstance(sharded, FullyShardedDataParallel):
            if gradient_clip_val is not None:
                sharded.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _not_finite(
        self, what: str, loss: Tensor, kind: str, batch_index: int, batch: Batch, logits: Tensor
    ) -> NonFiniteLossError:
        """Where the numbers went wrong: images that are not finite themselves, else those with such logits, else the batch."""
        paths = self.val_image_paths if kind.startswith("validation") else self.image_paths
        # Batch norms spread what one image holds to the logits of all.
        is_bad = ~torch.isfinite(batch["images"].flatten(1)).all(dim=1)  # (B,)
        if not is_bad.any():
            is_bad = ~torch.isfinite(logits).all(dim=1)  # (B,)
        rows = batch["index"][is_bad].tolist() or batch["index"].tolist()
        shown = ", ".join(str(paths[row]) for row in rows[:3]) if len(paths) else ""
        images = f" (images {shown}{', ...' if len(rows) > 3 else ''})" if shown else ""
        kept = getattr(self.trainer.checkpoint_callback, "kept", "")
        kept = f"{kept} is kept in last.ckpt. " if kept else ""
        epoch = f"epoch {self.current_epoch + 1} of {self.trainer.max_epochs}"
        return NonFiniteLossError(
            f"the {what} became {loss.item()} in {epoch}, {kind} {batch_index + 1}{images}. {kept}"
            "Lower optimizer.lr, set trainer.gradient_clip, or look at these images."
        )
