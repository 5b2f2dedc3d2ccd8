from numpy import float64
from numpy.typing import NDArray

def fit(
    above_s: NDArray[float64],
    above_ns: NDArray[float64],
    below_s: NDArray[float64],
    below_ns: NDArray[float64],
    given: NDArray[float64],
    /,
) -> bytes: ...
