"""The lab: a miniature world of real facts, a base model that knows it in English, and the demo on top.

`world` builds the facts and their splits, `text` turns them into pre-training text, `base` trains and loads the
model. Nothing here is downloaded: the facts come from the packages `babel` and `phonenumbers` (extra `demo`).
"""
