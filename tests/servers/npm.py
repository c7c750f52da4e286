"""Packages from npm that tests use: folders with a lock file of their own, installed when first asked for."""

import fcntl
import subprocess
from pathlib import Path

INSTALL_TIMEOUT_S = 300


def install(package: Path, wanted: Path) -> str | None:
    """Why `wanted`, a file of the package's `node_modules`, cannot be had; None: it is there.

    Processes of one test run ask at the same time: one installs, and the others wait for it.
    """
    with (package / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.exists():
            return None
        command = ["npm", "ci", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
        try:
            subprocess.run(command, cwd=package, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    return None
