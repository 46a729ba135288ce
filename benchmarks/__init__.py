"""Measurements of ForgeLLM against what it is built on, side by side in one run: `make bench`."""
