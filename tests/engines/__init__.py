"""Comparisons with the libraries and engines that read these formats.

`make engines` runs them in two environments that environments.py makes. vLLM requires older versions than the course.
gptqmodel requires a newer torch, although it also runs with the torch of the course. By hand:

    python tests/engines/environments.py
    PYTHONPATH=. build/engines-venv/bin/python -m pytest tests/engines
    PYTHONPATH=. build/vllm-venv/bin/python -m pytest tests/engines/test_in_vllm.py

If a library is missing, its tests are skipped.
"""
