"""Comparisons with the libraries and engines that read these formats.

`make engines` runs them, in two environments that environments.py makes: vLLM asks for older versions than the course,
and gptqmodel for a newer torch, though it runs with the course's. By hand:

    python tests/engines/environments.py
    PYTHONPATH=. build/engines-venv/bin/python -m pytest tests/engines
    PYTHONPATH=. build/vllm-venv/bin/python -m pytest tests/engines/test_in_vllm.py

Where a library is missing, its tests are skipped.
"""
