"""Make or repair the environments in which tests/engines run, since the engines' requirements contradict ours.

    python tests/engines/environments.py

build/engines-venv has transformers with compressed-tensors, gptqmodel, bitsandbytes, modelopt and mlx, in the versions
of constraints.txt if it names them. build/vllm-venv has vLLM, which requires older versions of a dozen packages. Each
environment takes about 2 GB and is made once: a stamp in it names the files and versions that it was made from, as in
`.venv` (bootstrap.py).

Some packages are installed without all of their requirements. gptqmodel and modelopt require versions or packages that
nothing here needs. vLLM requires torchaudio, torchvision, torchcodec and triton, which are not for CPUs and break vLLM
there.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

NEEDED_BYTES = 6 * 10**9  # for both
HERE = "tests/engines"
# For each environment: a file of packages to install with their requirements; a file of packages to install without
# them; pip's options for the versions of both; and folders that only some tests use, each with its file of packages.
ENVIRONMENTS = {
    "engines-venv": (
        *(f"{HERE}/requirements.txt", f"{HERE}/without_dependencies.txt", ("-c", "constraints.txt")),
        {"aside": f"{HERE}/aside.txt", "triton": f"{HERE}/triton.txt"},
    ),
    "vllm-venv": (f"{HERE}/vllm.txt", f"{HERE}/vllm_without_dependencies.txt", (), {}),
}


def set_up(name: str, candidates: list[str]) -> bool:
    """Make sure that build/``name`` is complete and up to date. Returns False if there was nothing to do."""
    required, alone, constraints, aside = ENVIRONMENTS[name]
    version, executable = bootstrap.find_python(candidates)
    folder = ROOT / "build" / name
    folder.parent.mkdir(exist_ok=True)
    venv = bootstrap.Venv(folder)
    wanted = bootstrap.fingerprint(ROOT, version, (required, alone, *aside.values(), *constraints[1:]))
    if venv.state().get("fingerprint") == wanted and venv.is_usable(version):
        return False
    bootstrap.check_disk(ROOT, NEEDED_BYTES)
    if not venv.is_usable(version):
        venv.make(executable)
    venv.unfinished.touch()
    os.environ["DISABLE_CUDA"] = "1"  # hqq would compile kernels for GPUs
    bootstrap.run_pip(venv.python, ROOT, ["-r", required], constraints)
    # Without build isolation: gptqmodel's setup looks at the torch that is installed here.
    bootstrap.run_pip(venv.python, ROOT, ["--no-deps", "--no-build-isolation", "-r", alone], constraints)
    for place, file in aside.items():
        target = ("--no-deps", "--no-build-isolation", "--upgrade", "--target", str(folder / place), "-r", file)
        bootstrap.run_pip(venv.python, ROOT, list(target), ())
    venv.mark_done({"fingerprint": wanted})
    return True


def main(arguments: list[str] | None = None) -> int:
    """Return exit status 0, or 1 after a paragraph that names the problem (disk, network, pip)."""
    parser = argparse.ArgumentParser(description="Make or mend the environments of tests/engines.")
    parser.add_argument("names", nargs="*", default=[], help=f"which: {', '.join(ENVIRONMENTS)} (default: all)")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - ENVIRONMENTS.keys()
    if unknown:
        parser.error(f"there is no environment {', '.join(sorted(unknown))}")
    # The Python that runs this script made .venv, so it is new enough and can make another environment.
    return bootstrap.reported(lambda: [set_up(name, [sys.executable]) for name in options.names or ENVIRONMENTS])


if __name__ == "__main__":
    sys.exit(main())
