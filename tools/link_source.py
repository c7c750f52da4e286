"""Make the environment import `tollkeeper` from `src/` and give it the `tollkeeper` command, without a build.

An editable install would fetch a build backend outside the pinned, hashed requirements.
"""

import sys
import sysconfig
from pathlib import Path

root = Path(__file__).resolve().parent.parent
Path(sysconfig.get_path("purelib"), "tollkeeper.pth").write_text(f"{root / 'src'}\n")
command = Path(sys.executable).parent / "tollkeeper"
command.write_text(f"#!{sys.executable}\nfrom tollkeeper.cli import main\n\nmain()\n")
command.chmod(0o755)
