"""Memory of mapped files: what is let go of keeps its values, and takes none where the system can do that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rcg.core.mapped import MappedFiles

MIB = 2**20


def resident(file: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_weights_that_are_let_go_keep_their_values(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    values = torch.arange(4 * MIB, dtype=torch.float32)
    save_file({"w": values}, file)
    with safe_open(file, "pt") as weights:
        mapped = weights.get_tensor("w")
    assert torch.equal(mapped, values)
    before = resident(file)
    MappedFiles().let_go(mapped)
    after = resident(file)
    assert after <= before
    if before > 15 * MIB and after < before:  # this file system and kernel do it: then all whole pages go
        assert after < MIB
    assert torch.equal(mapped, values)


def test_other_memory_is_left_alone() -> None:
    files = MappedFiles()
    for tensor in (torch.ones(3 * MIB), torch.ones(0), torch.ones(8, 4).T, torch.ones(2, device="meta")):
        files.let_go(tensor)
    own = torch.ones(MIB)
    files.let_go(own)
    assert own.sum() == MIB


def test_where_the_system_has_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    own = torch.ones(MIB)
    MappedFiles().let_go(own)
    assert own.sum() == MIB
