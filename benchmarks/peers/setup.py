"""Make an environment for each peer, since their requirements contradict those of qtutor and of each other.

    python benchmarks/peers/setup.py

Each takes about 1.5 GB under ~/.cache/qtutor/peers. An environment that exists already is not changed. GPTQModel
requires a torch newer than 2.13.0, and pip would install the build for GPUs. GPTQModel quantizes with 2.13.0 just as
well. So the requirements that it really needs are installed first, and then the package alone.
"""

import subprocess
import sys
import venv

from launch import CACHE

TORCH = "torch==2.13.0"  # with a newer one, pip may install several GB of CUDA
PACKAGES = {
    "llmcompressor": (["llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0"], []),
    "gptqmodel": (
        [
            "accelerate==1.15.0",
            "datasets==5.2.0",
            "defuser>=0.0.28",
            "device-smi>=0.5.7",
            "logbar>=0.4.15",
            "ninja>=1.13.2",
            "pillow>=13",
            "protobuf>=7.36.2",
            "pypcre>=0.6.4",
            "requests>=2.34.2",
            "threadpoolctl>=3.7.0",
            "tokenicer>=0.0.14",
            "torchao>=0.18.0",
            "transformers==5.23.0",
        ],
        ["gptqmodel==7.7.0"],
    ),
}


def main() -> None:
    for peer, (packages, alone) in PACKAGES.items():
        python = CACHE / f"venv-{peer}" / "bin" / "python"
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", TORCH]
        subprocess.run([*install, *packages], check=True)
        if alone:
            subprocess.run([*install, "--no-deps", *alone], check=True)
        print(f"{peer}: {python}")


if __name__ == "__main__":
    sys.exit(main())
