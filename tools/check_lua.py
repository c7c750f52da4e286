"""Compile every Lua script as it is loaded (includes resolved), so that a syntax error fails the lint."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tollkeeper.governance.scripts import SCRIPTS, source

luac = shutil.which("luac5.1") or shutil.which("luac")
if luac is None:
    sys.exit("luac5.1 is missing: run `make servers`")
for name in SCRIPTS:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(source(name))
        file.flush()
        done = subprocess.run([luac, "-p", file.name], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.replace(file.name, name)}")
        globals_set = subprocess.run([luac, "-l", "-p", file.name], capture_output=True, text=True, check=True).stdout
        if "SETGLOBAL" in globals_set:
            lines = [line.strip() for line in globals_set.splitlines() if "SETGLOBAL" in line]
            sys.exit(f"{name}: sets a global, which Redis refuses: {lines}")
print(f"{len(SCRIPTS)} Lua scripts compile ({Path(luac).name})")
