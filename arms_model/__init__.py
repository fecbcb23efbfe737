"""ARMS: a router for vision-language models (VLMs).

Given a picture and a question, the router says for every VLM of a pool how likely it is to answer exactly right.
Source: "An Effective Router for Vision-Language Model Selection", arXiv 2606.08970.

This package is the router as a library: tensors and plain values in, tensors and plain values out. It knows nothing of
the pipeline around it (no stage files, no DVC, no tables). Importing it does nothing.

Letters used for shapes everywhere:

    B  queries (or a batch of them)      K  VLMs            E  experts
    D  width of a vector                 N  rows in all     G  groups (of a bootstrap or a fold)
"""
