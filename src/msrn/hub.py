"""Files of the Hugging Face hub."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path


def download(name: str, patterns: Sequence[str], *, except_patterns: Sequence[str] = ()) -> Path:
    """The folder with a model's files; from the cache where the hub cannot be reached.

    Args:
        name: `owner/name` on the hub.
        patterns: Files to take, as in "*.json"; leave out what can hold code or pickles.
        except_patterns: Files of these to leave out.

    Raises:
        Exception: Whatever the hub or the web library it uses raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    fetch = partial(snapshot_download, name, allow_patterns=list(patterns), ignore_patterns=list(except_patterns))
    try:
        # One question first: without a network it fails at once, where a download would try for minutes.
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the hub's errors follow the web library it uses
        try:
            return Path(fetch(local_files_only=True))
        except Exception:
            raise error from None
    return Path(fetch())
