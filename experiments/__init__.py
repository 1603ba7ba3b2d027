"""The project's published results: one command each, which trains, tests and writes its section of RESULTS.md."""
