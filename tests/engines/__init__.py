"""Comparisons with the libraries and engines that read these formats.

They need an environment of their own, since gptqmodel asks for a newer torch than the course, runs with its torch as
well, and brings much along:

    python3 -m venv build/engines
    build/engines/bin/pip install -c constraints.txt -r tests/engines/requirements.txt
    build/engines/bin/pip install --no-deps --no-build-isolation -r tests/engines/without_dependencies.txt
    PYTHONPATH=. build/engines/bin/python -m pytest tests/engines

Where a library is missing, its tests are skipped.
"""
