import pytest
import torch

from retrieval import devices


def test_auto_takes_a_cpu_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("auto") == torch.device("cpu")


def test_a_process_of_torchrun_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.pick_device("auto") == torch.device("cuda", 1)
    assert taken == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="Process 2 of this machine has no CUDA device: there are 2"):
        devices.pick_device("cuda")


def test_refuses_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device; use device=auto"):
        devices.pick_device("cuda")
    with pytest.raises(ValueError, match="Unknown device 'gpu'; choose one of: auto, cpu, cuda"):
        devices.pick_device("gpu")


@pytest.mark.parametrize(("in_hardware", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_only_in_hardware(monkeypatch: pytest.MonkeyPatch, in_hardware: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu = torch.device("cpu")
    with devices.autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert devices.describe(cpu).endswith(str(dtype).removeprefix("torch."))


def test_bfloat16_units_are_left_as_they_were_found() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with devices.bfloat16_units():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == before
