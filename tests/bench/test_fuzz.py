from __future__ import annotations

from pipeline.bench import fuzz


def test_damage_is_refused_or_read_and_nothing_else() -> None:
    result = fuzz.measure(400, seed=7, workers=1)
    assert result["unexpected"] == []
    assert result["inputs"] == 400
    assert min(result[outcome] for outcome in ("torn", "bad image", "decoded")) > 20
    assert result["slowest_s"] < 30


def test_what_is_not_handled_is_reported_with_its_number(monkeypatch) -> None:
    def breaks(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(fuzz, "load_augmented", breaks)
    result = fuzz.measure(20, seed=7, workers=1)
    assert result["unexpected"]
    assert result["unexpected"][0].startswith("input ")
    assert "ZeroDivisionError" in result["unexpected"][0]
