from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.stages.findings import Findings


def test_faults_of_one_kind_keep_their_exit_status() -> None:
    with pytest.raises(DataError, match=r"^a\nb$"):
        Findings([DataError("a"), DataError("b"), DataError("a")]).refuse()
    with pytest.raises(ConfigError, match=r"^a\nb$"):
        Findings([DataError("a"), ModelError("b")]).refuse()
