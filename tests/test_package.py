"""What `import tollkeeper` gives."""

import ast
import subprocess
import sys
from pathlib import Path

import tollkeeper


def test_every_public_name_loads_and_is_typed() -> None:
    """The names that load lazily are those that type checkers see."""
    stub = ast.parse(Path(str(tollkeeper.__file__)).with_suffix(".pyi").read_text())
    typed = {a.asname or a.name for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names}
    homes = {name: home for home, names in tollkeeper._HOMES.items() for name in names}  # type: ignore[attr-defined]
    assert typed == set(homes) and set(tollkeeper.__all__) == {*typed, "__version__"}  # type: ignore[attr-defined]
    for name, home in homes.items():
        assert getattr(tollkeeper, name).__module__ == home


def test_importing_the_package_is_light() -> None:
    """A part that needs no Redis does not pay for it."""
    program = "import sys, tollkeeper.domain.money; sys.exit('redis' in sys.modules or 'asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
