"""GGUF, the file format of llama.cpp: block types, encoded byte for byte as llama.cpp does, and decoded.

    data = qtutor.gguf.encode(rows, "Q4_K")   # float32 [rows, columns] -> uint8 [rows, bytes of a row]
    rows = qtutor.gguf.decode(data, "Q4_K")   # and back, to the weights that llama.cpp computes with
    file = qtutor.gguf.read("model.gguf")     # file.metadata, file.tensors, file.weight(name)

:mod:`~qtutor.gguf.layout` describes the bytes, and :mod:`~qtutor.gguf.decoding` decodes them in numpy.
:mod:`~qtutor.gguf.search` finds scales, the modules named after the types write blocks, and :mod:`~qtutor.gguf.lanes`
makes them fast. :mod:`~qtutor.gguf.reader` and :mod:`~qtutor.gguf.writer` read and write the file around the blocks.
The encoders need numba (``pip install 'qtutor[gguf]'``) and import it when the first one is called; nothing else here
needs it.
"""

from qtutor.gguf.coding import decode, encode
from qtutor.gguf.container import GGUFError
from qtutor.gguf.layout import TYPES
from qtutor.gguf.reader import read
from qtutor.gguf.writer import Tensor, write

__all__ = ["TYPES", "GGUFError", "Tensor", "decode", "encode", "read", "write"]
