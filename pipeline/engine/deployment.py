"""Where latency counts: the deployment of the configuration, as ONNX Runtime and the measurements take it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.schema import DeploymentSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PROVIDERS: Mapping[str, str] = {  # ONNX Runtime's names, here as text: the command line reads them before it is loaded
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def session_arguments(deployment: DeploymentSettings) -> dict[str, Any]:
    """Provider, threads and batch, by the names of `validate.latency`."""
    return {"provider": PROVIDERS[deployment.provider], "threads": deployment.threads, "batch": deployment.batch}


def enough_images(images: "NDArray[np.float32]", deployment: DeploymentSettings) -> "NDArray[np.float32]":
    """At least one batch of images [N, C, H, W], repeated where they are fewer: time does not depend on them."""
    import numpy as np

    count = max(len(images), deployment.batch)
    return np.resize(images, (count, *images.shape[1:]))
