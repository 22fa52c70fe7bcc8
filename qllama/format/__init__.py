"""The `.qlm` container: one file, mapped not read, checked before it is used.

Owns the bytes of the file (`docs/format.md`). Knows nothing of checkpoints,
kernels or what a tensor is for.
"""

from qllama.format.reader import QlmFile
from qllama.format.spec import TensorInfo, TensorSpec
from qllama.format.writer import QlmWriter

__all__ = ["QlmFile", "QlmWriter", "TensorInfo", "TensorSpec"]
