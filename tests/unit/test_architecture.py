"""What import-linter cannot say: who may read the environment, and what keeps the unit tests quick."""

import ast
import re
from pathlib import Path

import perf_service

PACKAGE = Path(perf_service.__file__).parent
TESTS = Path(__file__).parent
MAY_READ = re.compile(r"\bos\s*\.\s*(environ|getenv)|from\s+os\s+import")
READS = {"environ", "environb", "getenv", "getenvb"}


def _environment_reads(path: Path) -> list[int]:
    found = []
    text = path.read_text()
    if not MAY_READ.search(text):
        return []  # parsing every module takes longer
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in READS and isinstance(node.value, ast.Name) and node.value.id == "os":
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os" and READS & {alias.name for alias in node.names}:
            found.append(node.lineno)
    return found


def test_only_settings_reads_the_environment() -> None:
    readers = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "settings.py" and PACKAGE / "v1" not in path.parents
        for line in _environment_reads(path)
    }
    assert readers == set()


def test_the_check_itself_sees_a_read(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text("import os\nfrom os import getenv\nx = os.environ['HOME']\n")
    assert _environment_reads(sample) == [2, 3]


def test_property_tests_are_integration_tests() -> None:
    """Hypothesis reads the source of every module: a second or two of each unit run. Its profile is in tests/integration."""
    word = "hypothesis"
    users = [str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py") if f"from {word} import" in path.read_text()]
    assert users == [], "move them to tests/integration/<room>/ beside the others"
