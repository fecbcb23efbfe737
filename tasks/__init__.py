"""The pipeline's stages, one module per DVC stage: `python -m tasks.<stage>` is the command of `dvc.yaml: <stage>`."""
