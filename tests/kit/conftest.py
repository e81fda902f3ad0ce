"""A repository that uses the test kit: no fixture of Minions' own tests is visible. test_test_kit.py runs it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def installed_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package with the tool `do`, installed for this process and its workers."""
    folder = tmp_path_factory.mktemp("installed")
    about = folder / "kit_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-tools\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[minions.tools]\ndo = kit_tools:do\n")
    shutil.copy(HERE / "kit_tools.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.syspath_prepend(folder)
        yield
