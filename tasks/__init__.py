"""The pipeline's stages, one module per DVC stage: `python -m tasks.<stage>` does what `dvc.yaml: stages.<stage>` says."""
