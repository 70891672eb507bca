"""Where latency counts: the deployment of the configuration, as ONNX Runtime and the measurements take it."""

from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.schema import DeploymentSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def session_arguments(deployment: DeploymentSettings) -> dict[str, Any]:
    """Provider, threads and batch, by the names of `validate.latency`."""
    from atopipe.validate.session import CPU, CUDA, TENSORRT

    providers = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
    return {"provider": providers[deployment.provider], "threads": deployment.threads, "batch": deployment.batch}


def enough_images(images: "NDArray[np.float32]", deployment: DeploymentSettings) -> "NDArray[np.float32]":
    """At least one batch of images [N, C, H, W], repeated where they are fewer: time does not depend on them."""
    import numpy as np

    count = max(len(images), deployment.batch)
    return np.resize(images, (count, *images.shape[1:]))
