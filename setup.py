"""Installs the top-level folders as sub-packages of ``atopipe``: a top-level module named ``validate`` would clash."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ["pipeline", "ato", "export", "validate"]
PACKAGES = [p for folder in FOLDERS for p in [folder, *(f"{folder}.{sub}" for sub in find_packages(folder))]]
HERE = Path(__file__).parent

# onnxruntime-gpu has wheels for these platforms only; elsewhere the CPU package provides the same module.
GPU = "sys_platform in 'linux win32' and platform_machine in 'x86_64 AMD64'"
CPU_ONLY = "sys_platform not in 'linux win32' or platform_machine not in 'x86_64 AMD64'"

EXTRAS = {
    "timm": ["timm>=1.0.15"],
    "tensorboard": ["tensorboard>=2.16"],
    "ray": ["ray>=2.44"],
    "mlflow": ["mlflow-skinny>=3.1", "sqlalchemy>=2", "alembic>=1.10"],
}

setup(
    name="atopipe",
    version="0.1.0",
    description="Train and prune an image classifier in one run, and hand over a small, verified ONNX model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=["atopipe", *(f"atopipe.{p}" for p in PACKAGES)],
    package_dir={"atopipe": "package", **{f"atopipe.{folder}": folder for folder in FOLDERS}},
    package_data={
        "atopipe": ["py.typed"],
        **{f"atopipe.{folder}": ["py.typed"] for folder in FOLDERS},
        "atopipe.pipeline": [
            "py.typed",
            "config/recipes/*.yaml",
            "report/report.html.j2",
            "stages/bundle/device/*.py",
            "sweep/sweep.html.j2",
            "sweep/executors/array.sbatch",
        ],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "torch-pruning>=1.6.1,<2",
        "onnx>=1.18",
        "onnxscript>=0.5",
        f"onnxruntime-gpu>=1.22; {GPU}",
        f"onnxruntime>=1.22; {CPU_ONLY}",
        "click>=8.1",
        "rich>=13",
        "pydantic>=2.12",
        "PyYAML>=6",
        "numpy>=1.26",
        "scipy>=1.12",
        "scikit-learn>=1.4",
        "safetensors>=0.4.3",
        "jinja2>=3.1",
        "psutil>=5.9",
        "filelock>=4",
        "pillow>=10",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "check-jsonschema>=0.30",
            "dvc>=3.50",
            *EXTRAS["timm"],
            *EXTRAS["tensorboard"],
            *EXTRAS["mlflow"],
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            "types-PyYAML",
            "types-psutil",
        ],
    },
    entry_points={"console_scripts": ["atopipe = atopipe.pipeline.cli.main:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
