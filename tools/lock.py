"""Turn pip's report of what it would install into a lock file with hashes: `python tools/lock.py REPORT > requirements.lock`."""

import json
import sys
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
HEADER = f"""\
# Written by make lock, for Python {{python_version}} on {{platform_system}} ({{platform_machine}}); elsewhere take constraints.txt.
# torch is the build for CPUs, which PyTorch's own index has. A hash tells the file, whichever index gives it.
--extra-index-url {INDEX}"""


def main() -> None:
    """Print a line a package; this project itself is left out."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    packages = []
    for item in report["install"]:
        name, version, source = item["metadata"]["name"].lower(), item["metadata"]["version"], item["download_info"]
        if "dir_info" in source:  # this project
            continue
        if name == "torch" and not version.endswith("+cpu"):
            sys.exit(
                f"pip found torch {version}, which is no build for CPUs. Lock again with PIP_EXTRA_INDEX_URL={INDEX} set."
            )
        digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            sys.exit(f"pip tells no SHA-256 of {name}. Take it from an index that gives one, and lock again.")
        packages.append((name, version, digest))
    print(HEADER.format(**report["environment"]))
    for name, version, digest in sorted(packages):
        print(f"{name}=={version} --hash=sha256:{digest}")


if __name__ == "__main__":
    main()
