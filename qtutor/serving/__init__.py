"""Many texts at once: keys and values in blocks, a scheduler, and an engine that writes the same as ``generate``.

>>> engine = Engine(model, tokenizer, blocks=64)
>>> requests = [engine.add(prompt, max_new_tokens=32) for prompt in prompts]
>>> for request, token in engine.stream():
...     print(request.number, tokenizer.decode(token))
"""

from qtutor.serving.cache import pool_bytes
from qtutor.serving.engine import Engine

__all__ = ["Engine", "pool_bytes"]
