"""Evaluation: metrics equal to the official scorers, choice extraction, answer-language adherence."""
