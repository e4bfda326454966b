"""Which device a process takes."""

from __future__ import annotations

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.hardware import check_one_each, own_device
from rcg.core.parts import Share


def test_of_several_gpus_each_process_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cpu", Share(1, 2)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", Share()) == torch.device("cuda")
    assert [own_device("cuda", Share(rank, 4)).index for rank in range(4)] == [0, 1, 0, 1]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert own_device("cuda", Share(3, 4)).index == 0


def test_more_training_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_one_each(torch.device("cpu"))
    with pytest.raises(UserError, match="2 processes were started on a machine with 1 GPU; start one"):
        check_one_each(torch.device("cuda"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_one_each(torch.device("cuda"))
