"""qtutor's side with every product in float32, as the peers' are; see qtutor.calibration.precision.products."""

import run_qtutor

if __name__ == "__main__":
    run_qtutor.main(wide=None)
