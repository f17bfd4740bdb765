from __future__ import annotations

import threading

import torch

from pipeline.models.arithmetic.cpu.scratch import scratch


def test_scratch_is_one_buffer_per_purpose_and_thread() -> None:
    first = scratch("a", (4, 5), torch.float32)
    assert scratch("a", (2, 5), torch.float32).data_ptr() == first.data_ptr()
    assert scratch("b", (4, 5), torch.float32).data_ptr() != first.data_ptr()
    assert scratch("a", (4, 5), torch.bfloat16).data_ptr() != first.data_ptr()
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scratch("a", (4, 5), torch.float32).data_ptr()))
    thread.start()
    thread.join()
    assert elsewhere[0] != first.data_ptr()


def test_scratch_of_a_prediction_serves_training() -> None:
    with torch.inference_mode():
        scratch("inference first", (8,), torch.float32).fill_(1.0)
    buffer = scratch("inference first", (8,), torch.float32)
    buffer.add_(torch.ones(8, requires_grad=True).detach())
    assert buffer.tolist() == [2.0] * 8
