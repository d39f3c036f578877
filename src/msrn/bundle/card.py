"""The model card: what a person should know before using a bundle."""

from typing import Any

from msrn.markdown import plain

_HEADS = {"msrn": "MSRN", "csra": "CSRA", "ml_gcn": "ML-GCN", "ml_decoder": "ML-Decoder"}


def model_card(config: dict[str, Any]) -> str:
    """Markdown for a bundle's README.md, from its configuration."""
    architecture, training = config["architecture"], config.get("training", {})
    labels, size = config["labels"], config["preprocessing"]["size"]
    head = _HEADS.get(str(architecture.get("name")), f"{architecture.get('pooling')}-pooled head")
    lines = [
        "---",
        "library_name: msrn",
        "pipeline_tag: image-classification",
        "tags: [multi-label, image-classification, msrn]",
        "---",
        "",
        "# " + plain(f"{head} on {architecture.get('backbone')}, {len(labels)} labels"),
        "",
        "Predicts which of these labels an image shows: " + ", ".join(map(plain, labels)) + ".",
        "",
        "```python",
        "import msrn",
        "",
        'predictor = msrn.load("path/to/this/folder")',
        'print(predictor.predict("photo.jpg"))',
        "```",
        "",
        f"Input: RGB, the whole image resized to {size[0]} x {size[1]} (height x width). A label is predicted where its "
        + plain(_decision(config)),
        "",
    ]
    if training:
        lines += ["## Training", ""]
        # People count epochs from 1; strangers may have written anything.
        facts = {
            name: value + 1 if name == "best_epoch" and isinstance(value, int) else value
            for name, value in training.items()
            if name != "recipe"
        }
        lines += ["- " + plain(f"{name.replace('_', ' ')}: {_shown(value)}") for name, value in facts.items()]
        lines += ["", "The whole recipe is in `config.json`.", ""]
    lines += [
        "## Limits",
        "",
        "The model knows nothing of labels outside the list."
        + ("" if "calibration" in config else " The probabilities are not calibrated.")
        + ("" if "thresholds" in config else " The threshold is not fitted."),
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _decision(config: dict[str, Any]) -> str:
    """When a label is predicted, and what that was fitted on."""
    fitted = config.get("thresholds")
    if fitted is None:
        return f"probability is at least {config['threshold']}."
    on = fitted["fitted_on"]
    calibration = config.get("calibration")
    return (
        f"probability is at least its threshold, {min(fitted['values']):.2f} to {max(fitted['values']):.2f}, fitted for "
        f"{fitted['objective']} on {on.get('images', 'some')} images of split '{on.get('split', '?')}'; "
        f"{sum(fitted['is_shared'])} labels share the threshold {fitted['shared']:.2f}, "
        f"{sum(fitted['is_out_of_reach'])} cannot meet the objective and are never predicted. "
        + ("" if calibration is None else f"The probabilities are calibrated there too ({calibration['method']}).")
    ).strip()
