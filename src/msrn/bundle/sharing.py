"""Bundles on the Hugging Face hub: finding them there, and putting them there."""

import re
from pathlib import Path

from msrn.bundle.bundle import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, load_bundle
from msrn.errors import BundleError, MSRNError
from msrn.hub import download, upload

HUB_PREFIX = "hub:"
_FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
_NAME = r"\w[\w.-]*/\w[\w.-]*"


def find_bundle(name: str | Path) -> Path:
    """The folder of a bundle: a path, or a bundle on the Hugging Face hub.

    From the hub only the files of a bundle are taken, none of which can hold code. Without a network the hub's cache is asked.

    Args:
        name: A folder; `hub:owner/name`, with `@` and a branch, tag or commit behind if it is not the newest; or `owner/name`
            where there is no such folder.

    Raises:
        BundleError: There is no such bundle on the hub, or it cannot be reached.
    """
    text, revision = str(name), None
    if text.startswith(HUB_PREFIX):
        text, _, revision = text.removeprefix(HUB_PREFIX).partition("@")
        if not re.fullmatch(_NAME, text):
            raise BundleError(f"{name}: expected hub:owner/name. Correct the name.")
    elif Path(name).expanduser().exists() or not re.fullmatch(_NAME, text):
        return Path(name).expanduser()
    try:
        return download(text, _FILES, revision=revision or None)
    except Exception as error:  # the hub's errors follow the web library it uses
        where = "was" if str(name).startswith(HUB_PREFIX) else "is no folder here, and was"
        raise BundleError(
            f"{name} {where} not found on the Hugging Face hub ({type(error).__name__}). Give the bundle folder that training "
            "writes, or owner/name of a bundle on the hub; without a network only what was loaded before is there."
        ) from None


def push_bundle(
    path: str | Path, name: str, *, private: bool = False, message: str | None = None, revision: str | None = None
) -> str:
    """Put a bundle on the Hugging Face hub: weights, configuration and model card, nothing else of its folder.

    The repository is made if it is missing. Log in first, by `hf auth login` or the variable HF_TOKEN.

    Args:
        path: The bundle's folder; it has to load.
        name: `owner/name`.
        private: Make a new repository private.
        message: Of the commit.
        revision: A branch; by default the main one.

    Returns:
        The address of the commit.

    Raises:
        BundleError: The folder is not a whole bundle.
        MSRNError: The hub cannot be reached, or refuses.
    """
    if not re.fullmatch(_NAME, name):
        raise MSRNError(f"'{name}': expected owner/name, as the hub has it. Correct the name.")
    load_bundle(path)  # what cannot be loaded is of no use to anyone
    try:
        return upload(
            Path(path).expanduser(),
            name,
            _FILES,
            private=private,
            message=message or "A bundle of msrn",
            revision=revision,
        )
    except Exception as error:  # the hub's errors follow the web library it uses
        reason = " ".join(str(error).split())[:300]
        raise MSRNError(
            f"{name} could not be put on the Hugging Face hub ({type(error).__name__}: {reason}). Check the network, log in by "
            "'hf auth login', and see that you may write there."
        ) from error
