"""Turn pip's report of what it would install into a lock file with hashes: `python tools/lock.py REPORT > requirements.lock`."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Print a line a package; this project itself is left out."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("# Written by make lock. Linux on x86-64 with a CPU: torch is the CPU build; elsewhere take constraints.txt.")
    packages = []
    for item in report["install"]:
        name, source = item["metadata"]["name"].lower(), item["download_info"]
        if "dir_info" in source:  # this project
            continue
        digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            sys.exit(f"pip tells no SHA-256 of {name}. Take it from an index that gives one, and lock again.")
        packages.append((name, item["metadata"]["version"], digest))
    for name, version, digest in sorted(packages):
        print(f"{name}=={version} --hash=sha256:{digest}")


if __name__ == "__main__":
    main()
