"""The description of the hardware and libraries that a training runs on."""

import pytest
import torch

from ganpipe.train.environment import describe, differences, hardware_of


def test_environments_are_compared_in_words() -> None:
    """A resumed run would not say why it is not exact, or warn although it is."""
    now = describe("cpu")
    assert now["the thread count"] == str(torch.get_num_threads()) and now["torch"] == torch.__version__
    assert differences(now, dict(now)) == ""
    before = now | {"the thread count": "64", "torch": "2.0"}
    assert differences(before, now) == (
        f"torch was 2.0 and is {torch.__version__}; the thread count was 64 and is {torch.get_num_threads()}"
    )


def test_instructions_for_bfloat16_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines hide the processor: a training resumed without the instructions is not exact."""
    known = []
    for able in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able}, raising=False
        )
        known.append(describe("cpu"))
    assert differences(*known).startswith("the instruction set was")


def test_the_hardware_is_named() -> None:
    """The model card would state a duration without the hardware that it belongs to."""
    environment = {"the processor": "EPYC", "the thread count": "2", "the number of ranks": "1"}
    assert hardware_of(environment) == "EPYC, 2 threads"
    assert hardware_of(environment | {"the thread count": "1"}) == "EPYC, 1 thread"
    assert hardware_of(environment | {"the GPU": "H200", "the number of ranks": "4"}) == "4 × H200"
