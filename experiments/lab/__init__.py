"""The experiments on the lab's miniature world: do deep supervision and CC-Tuning help, and why not?

python -m experiments.lab GRID                 # learning_rate, headline, layers, ablations (`grids`)
python -m experiments.lab.bottleneck           # where a held-out question is lost
python -m experiments.lab.bases                # bases that differ in one or two things
python -m experiments.lab.tatoeba --data DIR   # real sentence pairs, before and after
python -m experiments.lab.skill_model          # trains the base of the second task
"""
