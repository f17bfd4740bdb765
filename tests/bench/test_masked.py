from __future__ import annotations

from pipeline.bench.masked import measure


def test_an_encoder_of_a_quarter_of_the_patches_does_at_most_a_third_of_the_work() -> None:
    found = measure("nano", image_size=32, batch_size=2, threads=1, rounds=1, precision="fp32")
    assert found["token_share"] == (1 + 16) / (1 + 64)
    assert 0.2 < found["encoder_on_visible"]["share_of_operations"] < found["token_share"]
    assert found["encoder_on_visible"]["share_of_operations"] < found["task"]["share_of_operations"] < 1
    assert found["encoder_on_all"]["share_of_seconds"] == 1
