from __future__ import annotations

from pathlib import Path

import pytest

from shared.sandbox.confined import confinement, namespaces


def test_refused_chroot_removes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        assert Path(folder).parent == tmp_path
        raise PermissionError("not permitted")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(namespaces, "enter_empty_folder", refuse)
    layers = confinement.Layers(frozenset())
    assert not layers.add("chroot", confinement._enter_temporary_folder)
    assert layers.notes == ["chroot: not permitted"]
    assert list(tmp_path.iterdir()) == []
