"""What the tests of sweeping score with: what is swept is not looked at."""

from glas_bench.yardstick.refit import Budget

QUICK = Budget(share=0.02, checks=1, image_steps=1)
"""A recogniser fitted for a moment."""
