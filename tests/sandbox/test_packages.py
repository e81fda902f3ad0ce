"""Packages that the operator preloads: small ones written here, and large ones where they are installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.sandbox import Outcome, Sandbox
from shared.sandbox.fork_server import ForkServer

Write = Callable[[dict[str, str]], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes packages into a folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


def run(sandbox: Sandbox, source: str, *imports: str, **options: Any) -> Outcome:
    return sandbox.call(source, "f", {}, allowed_imports=imports, **options)


FAILING = {
    "missing": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "raising": ("1 / 0", "its import failed: ZeroDivisionError"),
    "leaving": ("raise SystemExit(3)", "its import failed: SystemExit"),
    "threaded": ("import threading\nthreading.Thread(target=threading.Event().wait).start()", "has started a thread"),
    "unseen_threads": (
        "import _thread, time\nfor _ in range(3): _thread.start_new_thread(time.sleep, (1_000,))",
        "has started 3 threads",
    ),
    "sharing": ("import mmap\nkept = mmap.mmap(-1, 4096)", "shares writable memory"),
    "opening": (
        "import os\nos.register_at_fork(after_in_child=lambda: open('/etc/hostname'))",
        "one of its hooks fails in a new process",
    ),
    "executing": (
        "import os\nos.register_at_fork(after_in_child=lambda: os.execv('/bin/true', ['true']))",
        "makes a forbidden system call in every new process",
    ),
    "aborting": (
        "import os\nos.register_at_fork(after_in_child=os.abort)",
        "every new process in which it is loaded is killed by signal",
    ),
    "crashing": ("import ctypes\nctypes.string_at(0)", "the process that imported it ended"),
    "exiting": ("import os\nos._exit(0)", "the process that imported it ended"),
}


@pytest.mark.parametrize("name", FAILING)
def test_failing_package_is_left_out_with_the_reason(write: Write, name: str) -> None:
    source, reason = FAILING[name]
    write({name: source, "acme": "RATE = 7"})
    with Sandbox(preload=[name, "acme"]) as sandbox:
        assert run(sandbox, "import acme\ndef f(): return acme.RATE", "acme").value == 7
        assert sandbox.packages == ("acme",)
        assert reason in sandbox.failed_packages[name]
        error = run(sandbox, f"import {name}\ndef f(): return 1", name).error
        assert error is not None
        assert error.type == "exception"  # not a security event: the function has done nothing wrong
        assert error.message.startswith(f"ImportError: the package of '{name}' could not be preloaded by this worker")
        assert reason in error.message


def test_function_can_continue_without_a_failing_package(write: Write) -> None:
    write({"raising": "1 / 0"})
    with Sandbox(preload=["raising"]) as sandbox:
        source = "try:\n    import raising\nexcept ImportError:\n    raising = None\ndef f(): return raising is None"
        assert run(sandbox, source, "raising").value is True


def test_missing_package_is_not_the_function_s_fault(sandbox: Sandbox) -> None:
    error = run(sandbox, "import numpy\ndef f(): return 1", "numpy").error
    assert error is not None
    assert error.type == "exception"
    assert "must be named in MINION_SANDBOX_PRELOAD" in error.message
    assert sandbox.validate("import numpy\ndef f(): return 1", "f", allowed_imports=["numpy"]) == []


def test_dependencies_of_a_package_must_be_preloaded_too(write: Write) -> None:
    write({"acme": "import acme_core", "acme_core": ""})
    with Sandbox(preload=["acme"]) as sandbox:
        error = run(sandbox, "import acme_core\ndef f(): return 1", "acme", "acme_core", "confined").error
        assert error is not None
        assert "this worker does not preload the package of 'acme_core'" in error.message
        own = run(sandbox, "import confined.boot\ndef f(): return 1", "confined")
        assert own.ok is False


def test_package_whose_import_does_not_end_is_left_out(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = ForkServer._wait_until

    def wait_briefly(self: ForkServer, happened: Callable[[], bool], deadline: float) -> None:
        wait(self, happened, 0.0 if self._loading == "hanging" else deadline)

    monkeypatch.setattr(ForkServer, "_wait_until", wait_briefly)
    write({"hanging": "import time\ntime.sleep(1_000)"})
    with Sandbox(preload=["hanging"]) as sandbox:
        assert run(sandbox, "def f(): return 1").value == 1
        assert "did not end within" in sandbox.failed_packages["hanging"]


def test_submodules_are_loaded_before_files_disappear(write: Write) -> None:
    write({"acme/__init__": "def rate():\n    from acme.inner.late import RATE\n    return RATE"})
    write({"acme/inner/__init__": "", "acme/inner/late": "RATE = 7", "acme/broken": "1 / 0"})
    with Sandbox(preload=["acme"]) as sandbox:
        assert run(sandbox, "import acme\ndef f(): return acme.rate()", "acme").value == 7
        assert run(sandbox, "import acme.inner.late as late\ndef f(): return late.RATE", "acme").value == 7
        error = run(sandbox, "import acme.broken\ndef f(): return 1", "acme").error
        assert error is not None
        assert "No module named 'acme.broken'" in error.message


def test_submodules_load_only_what_the_package_requires(write: Write, tmp_path: Path) -> None:
    write({"acme/__init__": "", "acme/core": "import acme_core", "acme/plugin": "import acme_runner\nLOADED = 1"})
    write({"acme_core": "import acme_base", "acme_base": "NAME = 'base'", "acme_runner": ""})
    for name, requires in {
        "acme": ["Acme_Core>=1 ; python_version > '3'", "acme-runner; extra == 'test'"],
        "acme-core": ["acme.base", "not-installed"],
        "acme-base": [],
        "acme-runner": [],
    }.items():
        folder = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {line}" for line in requires)]
        (folder / "METADATA").write_text("\n".join(lines), encoding="utf-8")
        (folder / "top_level.txt").write_text(name.replace("-", "_"), encoding="utf-8")
    with Sandbox(preload=["acme", "sys"]) as sandbox:
        source = "import sys\ndef f(): return [n for n in sorted(sys.modules) if n.startswith('acme')]"
        assert run(sandbox, source, check=False).value == ["acme", "acme.core", "acme_base", "acme_core"]


def test_import_finder_of_a_package_needs_no_name(write: Write) -> None:
    source = "import sys\nclass Finder:\n    def find_spec(self, *_): return None\nsys.meta_path.append(Finder())"
    write({"acme": source})
    with Sandbox(preload=["acme"]) as sandbox:
        assert run(sandbox, "import acme\ndef f(): return 1", "acme").value == 1


def test_numerical_libraries_are_limited_to_one_thread(write: Write) -> None:
    write({"acme": "import os\nSEEN = dict(os.environ)"})
    with Sandbox(preload=["acme"]) as sandbox:
        seen = run(sandbox, "import acme\ndef f(): return acme.SEEN", "acme").value
    assert {seen["OPENBLAS_NUM_THREADS"], seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]} == {"1"}
    assert set(seen) == {name for name in seen if name.endswith("THREADS")}


def test_global_generator_of_numpy_differs_between_calls(write: Write) -> None:
    write({"numpy/__init__": "from numpy import random"})
    write({"numpy/random": "import random\ng = random.Random(1)\nseed = g.seed\nrand = g.random"})
    with Sandbox(preload=["numpy"]) as sandbox:
        source = "import numpy\ndef f(): return numpy.random.rand()"
        assert len({run(sandbox, source, "numpy").value for _ in range(5)}) == 5


def test_number_that_gauss_keeps_for_its_next_call_is_not_shared(write: Write) -> None:
    write({"acme": "import random\nNOISE = random.gauss(0, 1)"})
    with Sandbox(preload=["acme"]) as sandbox:
        source = "import random\ndef f(): return random.gauss(0, 1)"
        assert len({run(sandbox, source, "random").value for _ in range(5)}) == 5


def test_submodule_of_a_safe_package_can_be_preloaded() -> None:
    with Sandbox(preload=["urllib.request"]) as sandbox:
        returned = "[urllib.request.Request('http://a').host, urllib.parse.quote(' ')]"
        source = f"import urllib.request, urllib.parse\ndef f(): return {returned}"
        assert run(sandbox, source, "urllib.request", "urllib.parse").value == ["a", "%20"]


# --- the large ones ---------------------------------------------------------------------------------------

LARGE = json.loads((Path(__file__).parent / "data" / "packages.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=sorted({function["package"] for function in LARGE}))
def large(request: pytest.FixtureRequest) -> Iterator[tuple[str, Sandbox]]:
    """Sandbox with a large package preloaded."""
    name = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    with Sandbox(preload=[name]) as sandbox:
        yield name, sandbox


@pytest.mark.soak
def test_large_packages_work_fully_confined(large: tuple[str, Sandbox]) -> None:
    name, sandbox = large
    assert sandbox.failed_packages == {}
    assert sandbox.level == "full"
    for function in LARGE:
        if function["package"] == name:
            for check in (True, False, False):
                imports = [name, *function["imports"]]
                outcome = sandbox.call(function["code"], "f", {}, allowed_imports=imports, check=check, timeout=60)
                assert outcome.error is None, function["name"]
                assert outcome.value == function["expected"], function["name"]


@pytest.mark.soak
def test_large_packages_serve_a_thousand_calls(large: tuple[str, Sandbox]) -> None:
    name, sandbox = large
    source = f"import {name}\ndef f(): return {name}.__name__"
    assert all(run(sandbox, source, name).value == name for _ in range(1_000))


@pytest.mark.soak
def test_random_numbers_of_numpy_differ_between_calls() -> None:
    pytest.importorskip("numpy", reason="numpy is not installed: pip install numpy")
    source = "import numpy as np\ndef f(): return [np.random.rand(), np.random.default_rng().random()]"
    with Sandbox(preload=["numpy"]) as sandbox:
        values = [run(sandbox, source, "numpy").value for _ in range(20)]
    assert all(len(set(column)) == 20 for column in zip(*values, strict=True))


@pytest.mark.soak
def test_pandas_samples_differ_between_calls() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    source = "import pandas as pd\ndef f(): return pd.Series(range(10_000)).sample(5).tolist()"
    with Sandbox(preload=["pandas"]) as sandbox:
        assert len({str(run(sandbox, source, "pandas").value) for _ in range(10)}) == 10
