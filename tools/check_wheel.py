"""Install the built wheel, with its pinned and hashed requirements, into an environment of its own, and use it there.

    python tools/check_wheel.py dist/tollkeeper-0.1.0-py3-none-any.whl

It must hold every file of the package and nothing else; the command must serve a governed request from an empty
folder, with the demo's own provider. What `make wheel` built is what is tested here and what the image installs.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
START_S: Final = 60.0


def contents(wheel: Path) -> None:
    """Compare the wheel's files with those of the package."""
    package = ROOT / "src"
    wanted = {str(p.relative_to(package)) for p in (package / "tollkeeper").rglob("*") if p.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if wanted != found:
        raise SystemExit(f"missing: {sorted(wanted - found)}, too much: {sorted(found - wanted)}")
    print(f"{wheel.name}: {len(found)} files, as in src/, {wheel.stat().st_size:,} bytes")


def install(wheel: Path, folder: Path) -> Path:
    """The command, installed."""
    venv.create(folder / "env", with_pip=True)
    pip: list[str | Path] = [
        folder / "env/bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    requirements = ROOT / "requirements.txt"
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", requirements], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    subprocess.run([folder / "env/bin/python", "-m", "pip", "check"], check=True)
    return folder / "env/bin/tollkeeper"


def serve(command: Path, folder: Path) -> None:
    """Run the demo in an empty folder, ask what it prints, stop it."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "out").open("w+") as out:
        demo = subprocess.Popen(
            [command, "serve", "--demo", "--port", "0"], cwd=folder, env=environ, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            text = _wait_for("Ctrl-C stops", folder / "out", demo)
            url = re.search(r"listens on (\S+)", text)
            secret = re.search(r"tk_[\w-]{43}", text)
            assert url and secret, text
            body = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}'
            headers = {"authorization": f"Bearer {secret[0]}", "content-type": "application/json"}
            asked = urllib.request.Request(f"{url[1]}/v1/chat/completions", body, headers)
            with urllib.request.urlopen(asked, timeout=START_S) as answer:
                print(answer.status, "cost", answer.headers["x-tollkeeper-cost-usd"], "USD")
            demo.terminate()
            if demo.wait(START_S) != 0:
                raise SystemExit((folder / "out").read_text())
        finally:
            demo.kill()
            demo.wait()


def _wait_for(words: str, file: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + START_S
    while words not in (text := file.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the demo did not start:\n{text}")
        time.sleep(0.1)
    return text


def main() -> None:
    """See the top."""
    wheel = Path(sys.argv[1]).resolve()
    contents(wheel)
    with tempfile.TemporaryDirectory() as name:
        command = install(wheel, Path(name))
        version = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        print(version)
        empty = Path(name) / "empty"
        empty.mkdir()
        os.chdir(empty)
        serve(command, empty)
    print("the wheel works")


if __name__ == "__main__":
    main()
