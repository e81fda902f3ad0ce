from __future__ import annotations

import pytest

from shared.sandbox.exchange import Ended
from shared.sandbox.insecure import InsecureServer
from shared.sandbox.parked import Usage
from shared.sandbox.replies import Reply
from shared.sandbox.verdict import Bounds, judge


@pytest.mark.parametrize(("peak", "type_"), [(34, None), (35, "memory_limit")])
def test_peak_above_the_limit_is_a_fault_despite_a_reply(peak: int, type_: str | None) -> None:
    ended = Ended(Reply(value=1), None, False, 0.1, Usage(peak_memory=peak << 20))
    fault = judge(ended, InsecureServer(), None, Bounds(memory=32, timeout=5.0, cpu=5.0))  # type: ignore[arg-type]
    assert (fault.type if fault else None) == type_
