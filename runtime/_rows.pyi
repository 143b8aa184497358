from typing import Any

import numpy as np
from numpy.typing import NDArray

def sum_each(arrays: list[NDArray[Any]], out: NDArray[np.float32]) -> None: ...
