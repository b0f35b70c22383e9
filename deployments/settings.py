"""The service's own settings: the `args` of the application in serve_config.yaml.

One section per stage, with the stage's name. Unknown keys are refused. Names contain the unit. Replicas, queue limits, CPUs and GPUs are
Ray Serve's options, in the same file under `deployments`; `serve_app.config_file` checks both.

Each deployment is constructed with its section. Defaults that the pipeline has are taken from there.
"""

# No `from __future__ import annotations` here or in serve_app/app.py: Ray Serve would then hand the builder a plain dict.
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from deployments.fetch_settings import FetchSettings, StrictModel
from pipeline.images.decode import WHITE_LEVEL, DecodeLimits
from pipeline.inference.engine import EngineOptions, Kind, Precision, SimulatedStep
from pipeline.types import DetectOptions, Holes, OutlineOptions

_DECODE, _ENGINE, _STEP = DecodeLimits(), EngineOptions(), SimulatedStep()
_DETECT, _OUTLINE = DetectOptions(), OutlineOptions()

EMBEDDED_MODEL = "rtmdet-ins_nano_person"
STAGES = ("ImageLoader", "Detector", "Polygonizer")
DEPLOYMENTS = ("Ingress", *STAGES)
"""Names in the order of a request. With `layout: together` there is only the Ingress, which holds the stages."""


class ModelSettings(StrictModel):
    """Which network is served."""

    name: str = Field(
        EMBEDDED_MODEL,
        description="Embedded model, OpenMMLab config name (downloaded on first use), or path to a .pth or .safetensors file.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/rtmdet-ins-serve"),
        description="Folder for downloaded checkpoints and converted networks; `~` is the home folder.",
    )


def _origin(text: str) -> str:
    """As browsers write it: in lower case, without the default port."""
    origin = text.lower()
    if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
        raise ValueError(f"{text!r} is not an origin; expected scheme, host and optional port, such as https://app.example.com")
    return re.sub(r"^(http://.*):80$|^(https://.*):443$", r"\1\2", origin)


class AuthSettings(StrictModel):
    """Bearer keys. With neither source set, every request is accepted."""

    keys_env: list[str] = Field(default=[], description="Names of environment variables that each hold one key.")
    keys_file: Path | None = Field(None, description="File with one key per line; read again when it changes.")
    allow_anonymous: bool = Field(False, description="Allow listening beyond loopback without keys.")


class GroupSettings(StrictModel):
    """How images share the calls between the stages under load (deployments/scoring/grouping.py)."""

    max_images: int = Field(8, ge=1, description="Maximum number of images in one call.")
    max_mb: float = Field(
        4.0,
        gt=0,
        description="Maximum size of a call of several images, MB (1e6 bytes, encoded); a larger image gets a call of its own.",
    )
    max_in_flight: int = Field(
        1,
        ge=1,
        description="Maximum number of calls of grouped images in flight per ingress replica; images that arrive meanwhile form the next "
        "call. With several keys, callers with none in flight get further ones. Calls of URLs and of single retried images do not count.",
    )


class IngressSettings(StrictModel):
    """Limits of a request, admission, deadlines, keys."""

    timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Time limit of a request, seconds, unless its x-request-timeout-seconds is shorter."
    )
    max_body_mb: float = Field(32.0, gt=0, description="Largest request body, MB (1e6 bytes).")
    max_bodies_mb: float = Field(
        512.0,
        gt=0,
        description="Maximum size of all request bodies in an ingress replica together, MB (1e6 bytes); beyond it, requests are refused at "
        "once. Bodies of image files and forms count twice: the photos are copied out of them.",
    )
    max_answer_mb: float = Field(
        32.0, gt=0, description="Largest answer to a request, MB (1e6 bytes); beyond it, the request fails with 413."
    )
    max_images_per_request: int = Field(64, ge=1, description="Maximum number of images in one request.")
    max_images_in_flight: int = Field(
        256,
        ge=1,
        description="Maximum number of images in flight per ingress replica, URLs not counted; beyond it, requests are refused at once.",
    )
    overload_status: Literal[429, 503] = Field(503, description="HTTP status of requests refused because of overload.")
    azureml_status_codes: bool = Field(
        False,
        description="Use the status codes of AzureML's managed endpoints on /score: 424 for 400, 415 and 422; 429 for overload.",
    )
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        [],
        description='Origins that may call from browsers, such as https://app.example.com; ["*"] allows all. Empty: no CORS headers.',
    )
    retry_after_s: int = Field(1, ge=1, description="Smallest Retry-After header of a refused request, seconds.")
    ready_cache_s: float = Field(1.0, ge=0, description="How long the result of /ready is cached, seconds.")
    max_urls: int = Field(
        256,
        ge=1,
        description="Maximum number of URLs per ingress replica, waiting ones included; beyond it, requests with URLs are refused at once.",
    )
    max_urls_in_flight: int = Field(
        32,
        ge=1,
        description="Maximum number of URLs fetched and scored at a time, of max_urls; the others wait. Each occupies a call.",
    )
    max_large_images: int = Field(
        16,
        ge=1,
        description="Maximum number of images per ingress replica that are too large or slow to be decoded with others, or whose answer is "
        "a picture; they are scored one at a time.",
    )
    max_share_per_key: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Largest share of max_images_in_flight, max_urls, max_large_images, max_urls_in_flight and max_bodies_mb that the "
        "requests of one key may use, if there are several keys.",
    )
    groups: GroupSettings = GroupSettings()
    auth: AuthSettings = AuthSettings()


class ImageLoaderSettings(StrictModel):
    """Fetching, decoding and scaling; on CPU replicas."""

    max_image_mb: float = Field(_DECODE.max_bytes / 1e6, gt=0, description="Largest encoded image, MB (1e6 bytes).")
    max_megapixels: float = Field(
        _DECODE.max_pixels / 1e6,
        gt=0,
        le=178,
        description="Largest image, megapixels; checked in the header, before decoding. Pillow refuses images of 179 and more.",
    )
    max_megapixels_unscaled: float = Field(
        _DECODE.max_pixels_unscaled / 1e6,
        gt=0,
        description="Largest image that is not a JPEG, megapixels. It is always decoded at full size: up to 12 MB of memory per megapixel.",
    )
    exif_orientation: bool = Field(
        _DECODE.exif_orientation,
        description="Rotate images by their EXIF orientation. False: use the pixels as stored, as AzureML's scorer does, for clients that "
        "draw on the stored pixels.",
    )
    white_level: int | None = Field(
        _DECODE.white_level,
        ge=1,
        description=WHITE_LEVEL,
    )
    decode_timeout_s: float = Field(
        5.0,
        gt=0,
        description="Longest time to decode one image, seconds; then its decoder is killed. For large images, decoded while the cores are "
        "idle, it limits the CPU time, and three times as much the time by the clock. The default is below the 6 s after which the Ingress "
        "retries a call that does not return, so that an image that hangs its decoder is refused and not retried.",
    )
    threads: int = Field(2, ge=1, description="Images that a replica decodes at a time, each in its own process.")
    fetch: FetchSettings = FetchSettings()


class SimulatedSettings(StrictModel):
    """`engine: simulated`, for load tests: a pass over B images takes base_ms + per_image_ms * B and returns made-up instances."""

    base_ms: float = Field(_STEP.base_ms, ge=0, description="Constant part of the time of a pass, milliseconds.")
    per_image_ms: float = Field(_STEP.per_image_ms, ge=0, description="Additional time per image of a pass, milliseconds.")
    instances: int = Field(_STEP.instances, ge=0, le=100, description="Instances returned for every image.")


class DetectorSettings(StrictModel):
    """The network: engine, precision and dynamic batching."""

    engine: Kind = Field(
        _ENGINE.kind, description="auto: torch with CUDA, openvino without. simulated: made-up answers, for load tests only."
    )
    simulated: SimulatedSettings = SimulatedSettings()
    precision: Precision = Field(
        _ENGINE.precision, description="auto: the fastest that keeps accuracy on the device: bf16 or fp32 on a CPU, fp16 on CUDA."
    )
    device: str = Field(_ENGINE.device, pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(
        _ENGINE.threads, ge=1, description="CPU threads of the engine; null: the cores of the replica (num_cpus)."
    )
    fitted_input: bool = Field(
        _ENGINE.fitted,
        description="openvino: pad each image to the smallest of five input shapes that holds it: a sixth to a third less work, for 0.3 GB "
        "of memory (embedded model; RTMDet-Ins-x: 2 GB). False: always a square, as mmdet.",
    )
    cuda_kernels: bool = Field(
        _ENGINE.cuda_kernels,
        description="torch on CUDA: use this project's CUDA kernels, up to a third faster; they are compared with PyTorch at start.",
    )
    max_batch: int = Field(_ENGINE.max_batch, ge=1, le=256, description="Maximum number of images in one pass of the network.")
    max_wait_ms: float = Field(
        2.0, ge=0, description="How long an idle detector waits for more images to form a batch, milliseconds."
    )
    score_threshold: float = Field(_DETECT.score_threshold, ge=0, le=1, description="Default of the request parameter.")
    max_detections: int = Field(
        _DETECT.max_detections, ge=1, le=100, description="Default and upper bound of the request parameter."
    )

    @model_validator(mode="after")
    def _engine_runs_there(self) -> "DetectorSettings":
        if self.engine == "openvino" and self.device.startswith("cuda"):
            raise ValueError(f"engine: openvino runs on CPUs, not on {self.device}; use torch, or device: cpu")
        return self


class PolygonizerSettings(StrictModel):
    """How masks become outlines: the defaults of the request parameters."""

    tolerance_px: float = Field(
        _OUTLINE.tolerance_px,
        ge=0,
        description="Largest distance of the polygon from the mask's edge, pixels of the original image.",
    )
    max_points: int | None = Field(
        _OUTLINE.max_points, ge=3, description="Maximum number of points of one object's polygons; null: no limit."
    )
    decimals: int | None = Field(
        _OUTLINE.decimals, ge=1, le=17, description="Decimal places of the normalised coordinates; null: float64."
    )
    holes: Holes = Field(_OUTLINE.holes, description="drop: fill holes. rings: return them in `holes`.")
    threads: int = Field(1, ge=1, description="Threads of a replica; the objects of one image are divided among them.")


class Settings(StrictModel):
    """All settings of the application: the `args` section of serve_config.yaml."""

    layout: Literal["stages", "together"] = Field(
        "stages",
        description="stages: each stage has its own replicas. together: all run in the Ingress replica, for one small machine.",
    )
    model: ModelSettings = ModelSettings()
    ingress: IngressSettings = IngressSettings()
    image_loader: ImageLoaderSettings = ImageLoaderSettings()
    detector: DetectorSettings = DetectorSettings()
    polygonizer: PolygonizerSettings = PolygonizerSettings()

    @model_validator(mode="after")
    def _one_request_fits(self) -> "Settings":
        if self.ingress.max_images_in_flight < self.ingress.max_images_per_request:
            raise ValueError(
                f"ingress.max_images_in_flight ({self.ingress.max_images_in_flight}) must be at least "
                f"ingress.max_images_per_request ({self.ingress.max_images_per_request}): the largest request could never be served"
            )
        if self.ingress.max_urls < self.ingress.max_images_per_request:
            raise ValueError(
                f"ingress.max_urls ({self.ingress.max_urls}) must be at least ingress.max_images_per_request "
                f"({self.ingress.max_images_per_request}): the largest request of URLs could never be served"
            )
        if self.ingress.max_bodies_mb < 2 * self.ingress.max_body_mb:
            raise ValueError(
                f"ingress.max_bodies_mb ({self.ingress.max_bodies_mb:g}) must be at least twice ingress.max_body_mb "
                f"({self.ingress.max_body_mb:g}): the largest request of image files, which counts twice, could never be served"
            )
        return self


def first_fault(error: ValidationError, document: Any, location: str) -> str:
    """A message for the first error in a part of a configuration file.

    Args:
        document: the part, as parsed from YAML.
        location: of the part in the file; empty for the whole file.
    """
    fault = error.errors(include_url=False)[0]
    here = document
    for part in fault["loc"]:
        if isinstance(here, list | tuple) and isinstance(part, int):
            here = here[part]
            location += f"[{here.get('name', part) if isinstance(here, dict) else part}]"
        elif isinstance(here, dict) and (part in here or fault["type"] == "missing"):  # else the name of a type in a union
            here = here.get(part)
            location += f".{part}"
    text = re.sub(r"^Value error, | or instance of \w+", "", fault["msg"])
    text = text.replace("valid tuple", "valid list").replace("valid dictionary", "valid mapping")
    return f"{location.removeprefix('.') or 'top level'}: {text}"
