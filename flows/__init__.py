"""Prefect flows: when and where DVC's stages run. They reach the other rooms by command line only."""
