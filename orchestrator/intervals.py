"""Wilson's score interval of a rate (E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
Inference", JASA 22, 1927). It is right for few trials and for rates of 0 and 1, where the normal approximation is not.
"""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The quantile of the normal distribution for 95 %."""


def wilson(rate: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of a rate that was found in a number of trials; without trials, it is from 0 to 1."""
    if count == 0:
        return 0.0, 1.0
    spread = z * z / count
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
