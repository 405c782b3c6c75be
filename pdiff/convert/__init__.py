"""State dicts of PyTorch as safetensors, in a process of its own: `python -m pdiff.convert --source=DIR --out=NEW_DIR`.

The rest of pdiff neither imports this nor opens a pickle. See docs/importing.md.
"""
