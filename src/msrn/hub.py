"""Files of the Hugging Face hub."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path


def download(
    name: str, patterns: Sequence[str], *, except_patterns: Sequence[str] = (), revision: str | None = None
) -> Path:
    """The folder with a model's files; from the cache where the hub cannot be reached.

    Args:
        name: `owner/name` on the hub.
        patterns: Files to take, as in "*.json"; leave out what can hold code or pickles.
        except_patterns: Files of these to leave out.
        revision: A branch, tag or commit; the newest by default.

    Raises:
        Exception: Whatever the hub or the web library it uses raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    fetch = partial(
        snapshot_download,
        name,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(except_patterns),
    )
    try:
        # One question first: without a network it fails at once, where a download would try for minutes.
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:  # the hub's errors follow the web library it uses
        try:
            return Path(fetch(local_files_only=True))
        except Exception:
            raise error from None
    return Path(fetch())


def upload(
    folder: Path, name: str, files: Sequence[str], *, private: bool, message: str, revision: str | None = None
) -> str:
    """Put some files of a folder into a model's repository, which is made if it is missing, in one commit.

    Returns:
        The address of the commit.

    Raises:
        Exception: Whatever the hub or the web library it uses raises.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=private or None, exist_ok=True)  # None leaves it to the owner's default
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    done = api.upload_folder(
        repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=message, revision=revision
    )
    return str(done.commit_url)
