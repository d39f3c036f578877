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
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" in hashes:
            packages.append((item["metadata"]["name"].lower(), item["metadata"]["version"], hashes["sha256"]))
    for name, version, digest in sorted(packages):
        print(f"{name}=={version} --hash=sha256:{digest}")


if __name__ == "__main__":
    main()
