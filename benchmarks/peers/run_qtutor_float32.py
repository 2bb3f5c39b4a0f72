"""qtutor's side with every product in float32, as the peers' are; see qtutor.calibration.precision.products."""

import sys

import run_qtutor

from qtutor.calibration import precision

precision.WIDE = sys.maxsize

if __name__ == "__main__":
    run_qtutor.main()
