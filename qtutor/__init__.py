"""qtutor: build LLM weight quantization from scratch, measure it, and keep what you built.

The public names are looked up when they are first used, so that ``qtutor --help`` need not wait for torch.
"""

import importlib

_WHERE = {
    "IntGrid": "core.grid",
    "QtutorError": "errors",
    "QuantizedTensor": "core.quantized",
    "Recipe": "recipe",
    "add_outliers": "decoder.outliers",
    "export": "formats",
    "generate": "measure.generation",
    "load": "loading",
    "load_decoder": "loading",
    "load_quantized": "formats",
    "perplexity": "measure.losses",
    "plan": "pipeline",
    "quantize": "pipeline",
    "quantize_to": "pipeline",
}
_MODULES = {
    "awq": "methods.awq",
    "bnb": "methods.bnb",
    "decoder": "decoder",
    "evaluate": "measure",
    "gguf": "gguf",
    "gptq": "methods.gptq",
    "rtn": "methods.rtn",
}

__all__ = sorted([*_WHERE, *_MODULES])


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(f"qtutor.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"qtutor.{_MODULES[name]}")
    else:
        raise AttributeError(f"qtutor has no public name {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
