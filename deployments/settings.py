"""The service's own settings: the `args` of the application in serve_config.yaml.

One section per stage, named as the stage. Unknown keys are refused (Ray Serve itself would drop some silently).
Units stand in the names. What Ray Serve decides (replicas, queue bounds, CPUs, GPUs) stands in the same file
under `deployments`; `serve_app.config_file` checks both.

Each deployment is constructed with its section. Where the pipeline has a default of its own, it is taken from there.
"""

# No `from __future__ import annotations` here or in serve_app/app.py: Ray Serve would then hand the builder a plain dict.
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from deployments.fetch_settings import FetchSettings, StrictModel
from pipeline.errors import ConfigurationError
from pipeline.images.decode import DecodeLimits
from pipeline.inference.engine import EngineOptions, Kind, Precision, SimulatedStep
from pipeline.types import DetectOptions, Holes, OutlineOptions

_DECODE, _ENGINE, _STEP = DecodeLimits(), EngineOptions(), SimulatedStep()
_DETECT, _OUTLINE = DetectOptions(), OutlineOptions()

EMBEDDED_MODEL = "rtmdet-ins_nano_person"


class ModelSettings(StrictModel):
    """Which network is served."""

    name: str = Field(
        EMBEDDED_MODEL,
        description="Embedded model, an official OpenMMLab config name (downloaded on first use), or a path to .pth/.safetensors.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/rtmdet-ins-serve"),
        description="Folder for downloaded checkpoints and compiled models; `~` is the home folder.",
    )


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", text):
        raise ValueError(
            f"{text!r} is no origin; wanted is scheme and host, and a port where it has one: https://app.example.com"
        )
    return text


class AuthSettings(StrictModel):
    """Bearer keys. With neither source set the endpoint is open."""

    keys_env: list[str] = Field(default=[], description="Names of environment variables that each hold one key.")
    keys_file: Path | None = Field(None, description="File with one key a line; read again when it changes, so keys rotate live.")
    allow_anonymous: bool = Field(False, description="Serve without keys even when listening beyond loopback.")


class GroupSettings(StrictModel):
    """How images share the calls between the stages when there is load (deployments/grouping.py)."""

    max_images: int = Field(8, ge=1, description="Most images in one call.")
    max_mb: float = Field(
        4.0, gt=0, description="Most MB (1e6 bytes, as sent) in a call of several images; a larger one goes alone."
    )
    max_in_flight: int = Field(
        1,
        ge=1,
        description="Most calls in flight per ingress replica; what comes meanwhile makes up the next. URLs are not counted.",
    )


class IngressSettings(StrictModel):
    """The front door: limits of a request, admission, deadlines, keys."""

    timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Deadline of a request, unless x-request-timeout-seconds is shorter."
    )
    max_body_mb: float = Field(32.0, gt=0, description="Largest request body, MB (1e6 bytes).")
    max_bodies_mb: float = Field(
        512.0,
        gt=0,
        description="Bodies that an ingress replica reads and holds at a time, MB (1e6 bytes); beyond it refused at once.",
    )
    max_answer_mb: float = Field(32.0, gt=0, description="Largest answer of a request, MB (1e6 bytes); beyond it 413.")
    max_images_per_request: int = Field(64, ge=1, description="Most images in one request.")
    max_images_in_flight: int = Field(
        256, ge=1, description="Most images inside the service per ingress replica; above it requests are refused at once."
    )
    overload_status: Literal[429, 503] = Field(503, description="HTTP status of a refusal for load.")
    azureml_status_codes: bool = Field(
        False,
        description="Answer /score with the status codes of AzureML's managed endpoints: 424 for 400, 415 and 422, 429 for overload.",
    )
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        [],
        description='Origins whose pages may call from browsers, e.g. https://app.example.com; ["*"]: all. None: no CORS headers.',
    )
    retry_after_s: int = Field(1, ge=1, description="Retry-After header of a refusal, seconds.")
    ready_cache_s: float = Field(1.0, ge=0, description="How long an answer of /ready stays valid, seconds.")
    max_urls: int = Field(
        256, ge=1, description="Most URLs per ingress replica, waiting ones included; above it requests are refused at once."
    )
    max_urls_in_flight: int = Field(
        32, ge=1, description="Of those, most that are fetched and scored at a time; the others wait. Each holds a call."
    )
    max_large_images: int = Field(
        16,
        ge=1,
        description="Most images per ingress replica that are too large or slow to be decoded beside others; they take turns.",
    )
    max_share_per_key: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Most of each of these bounds that one key's requests may hold, where there are several keys.",
    )
    groups: GroupSettings = GroupSettings()
    auth: AuthSettings = AuthSettings()


class ImageLoaderSettings(StrictModel):
    """Fetch, decode, scale: on CPU replicas."""

    max_image_mb: float = Field(_DECODE.max_bytes / 1e6, gt=0, description="Largest encoded image, MB (1e6 bytes).")
    max_megapixels: float = Field(
        _DECODE.max_pixels / 1e6, gt=0, description="Largest decoded image, megapixels, checked before decoding."
    )
    max_megapixels_unscaled: float = Field(
        _DECODE.max_pixels_unscaled / 1e6,
        gt=0,
        description="The same for images that are no JPEGs: they are always decoded at full size, 17 MB of memory a megapixel.",
    )
    exif_orientation: bool = Field(
        _DECODE.exif_orientation,
        description="Turn photos upright as their EXIF orientation says. False: as stored, as AzureML's scorer does, for clients that draw "
        "on the stored pixels.",
    )
    white_level: int | None = Field(
        _DECODE.white_level,
        ge=1,
        description="Value of white in images of more than 8 bits a channel, such as 4095. null: 255, 4095 or 65535, the smallest that "
        "holds the image's highest value, so that neighbouring frames of a series may differ in brightness.",
    )
    decode_timeout_s: float = Field(
        10.0, gt=0, description="Longest time to decode one image, seconds; its decoder is then killed."
    )
    threads: int = Field(2, ge=1, description="Images that a replica decodes at a time, each in a process of its own.")
    fetch: FetchSettings = FetchSettings()


class SimulatedSettings(StrictModel):
    """Speed of `engine: simulated`, which is for load tests: a pass of B images takes base_ms + per_image_ms * B."""

    base_ms: float = Field(_STEP.base_ms, ge=0, description="Time of a pass apart from its images, milliseconds.")
    per_image_ms: float = Field(_STEP.per_image_ms, ge=0, description="Time of each image of a pass, milliseconds.")
    instances: int = Field(_STEP.instances, ge=0, le=100, description="Made-up instances in every image.")


class DetectorSettings(StrictModel):
    """The network: engine, precision and dynamic batching."""

    engine: Kind = Field(
        _ENGINE.kind, description="auto: torch where CUDA is, else openvino. simulated: made-up answers, for load tests only."
    )
    simulated: SimulatedSettings = SimulatedSettings()
    precision: Precision = Field(_ENGINE.precision, description="auto: the fastest that keeps accuracy.")
    device: str = Field(_ENGINE.device, pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(
        _ENGINE.threads, ge=1, description="CPU threads of the engine; None: the cores this replica owns."
    )
    fitted_input: bool = Field(
        _ENGINE.fitted,
        description="openvino: pad a photo to the smallest of five inputs that holds it: a sixth to a third less work, for 0.3 GB of "
        "memory (embedded model; x: 2 GB). False: mmdet's square.",
    )
    cuda_kernels: bool = Field(
        _ENGINE.cuda_kernels,
        description="torch on CUDA: this project's own kernels, up to a third faster; they prove themselves at start.",
    )
    max_batch: int = Field(_ENGINE.max_batch, ge=1, le=256, description="Most images in one pass of the network.")
    max_wait_ms: float = Field(2.0, ge=0, description="An idle detector waits this long for company, milliseconds.")
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
        _OUTLINE.tolerance_px, ge=0, description="Largest distance of the outline from the mask edge, original pixels."
    )
    max_points: int | None = Field(_OUTLINE.max_points, ge=3, description="Most vertices of one object.")
    decimals: int | None = Field(_OUTLINE.decimals, ge=1, le=17, description="Digits of the normalised coordinates.")
    holes: Holes = Field(_OUTLINE.holes, description="drop fills holes; rings gives them beside the polygon.")
    threads: int = Field(1, ge=1, description="Worker threads of a replica; an image with many objects is spread over them.")


class Settings(StrictModel):
    """Everything the application takes; the `args` section of serve_config.yaml."""

    layout: Literal["stages", "together"] = Field(
        "stages", description="stages: each in replicas of its own. together: all in the Ingress replica, for one small machine."
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
        if self.ingress.max_bodies_mb < self.ingress.max_body_mb:
            raise ValueError(
                f"ingress.max_bodies_mb ({self.ingress.max_bodies_mb:g}) must be at least ingress.max_body_mb "
                f"({self.ingress.max_body_mb:g}): the largest request could never be served"
            )
        return self


LIVE: dict[str, frozenset[str]] = {
    "ingress": frozenset(
        "timeout_s max_body_mb max_answer_mb max_images_per_request max_images_in_flight max_urls max_large_images max_share_per_key "
        "overload_status retry_after_s ready_cache_s".split()
    ),
    "detector": frozenset({"score_threshold", "max_detections"}),
    "polygonizer": frozenset({"tolerance_px", "max_points", "decimals", "holes"}),
}
"""Settings that change in running Ingress replicas, by section: those of a request, and its limits. All others need new replicas."""


def with_live_settings(settings: Settings, user_config: Any) -> Settings:
    """These settings with those of the Ingress' `user_config` over them.

    Args:
        user_config: sections and settings as in `args`, only those in `LIVE`; None changes nothing.
    Raises:
        ConfigurationError: a setting is unknown, not live, or has a value that it cannot have.
    """
    place = "deployments[Ingress].user_config"
    if not isinstance(user_config or {}, dict):
        raise ConfigurationError(f"{place}: expected sections {', '.join(LIVE)}, got {user_config!r}")
    document = settings.model_dump()
    for section, values in (user_config or {}).items():
        if section not in LIVE or not isinstance(values, dict):
            raise ConfigurationError(f"{place}.{section}: expected one of the sections {', '.join(LIVE)}, with settings in it")
        if wrong := sorted(map(str, set(values) - LIVE[section])):
            raise ConfigurationError(
                f"{place}.{section}: {', '.join(wrong)} cannot change in running replicas; set it under args. "
                f"Live are {', '.join(sorted(LIVE[section]))}"
            )
        document[section] |= values
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{'.'.join(map(str, (place, *fault['loc'])))}: {fault['msg']}") from error
