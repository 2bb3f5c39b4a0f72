"""qtutor: build LLM weight quantization from scratch, measure it, and keep what you built."""

from qtutor import evaluate, rtn
from qtutor.decoder import add_outliers, load_decoder
from qtutor.errors import QtutorError
from qtutor.evaluate import generate, perplexity
from qtutor.grid import IntGrid
from qtutor.pipeline import Recipe, quantize
from qtutor.quantized import QuantizedTensor
from qtutor.storage import export, load_quantized

__all__ = [
    "IntGrid",
    "QtutorError",
    "QuantizedTensor",
    "Recipe",
    "add_outliers",
    "evaluate",
    "export",
    "generate",
    "load_decoder",
    "load_quantized",
    "perplexity",
    "quantize",
    "rtn",
]
