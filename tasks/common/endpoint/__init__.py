"""Asking VLMs over HTTP: the answer store, pictures as sent, prices and budgets, the asking loop, servers."""
