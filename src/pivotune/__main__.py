"""`python -m pivotune`, which `accelerate launch -m pivotune ...` needs."""

from pivotune.cli import main

if __name__ == "__main__":
    main()
