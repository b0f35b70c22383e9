"""The engine on a CPU: the network converted for OpenVINO, and the folder that keeps the result for the next start."""

import sys

# Disables OpenVINO's telemetry, which would send usage data over the network from forked processes: None in sys.modules makes the
# import of its telemetry package fail.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
