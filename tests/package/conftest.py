"""These tests build the distributions. A run over all of tests/ leaves them out; `make package` runs them."""

from pathlib import Path


def pytest_ignore_collect(collection_path, config):
    """These tests run only if the command names this folder or a file in it."""
    named = [Path(str(argument).split("::")[0]).resolve() for argument in config.args]
    here = Path(__file__).parent
    return None if any(path == here or here in path.parents for path in named) else True
