"""The engine on a CPU: the network converted for OpenVINO, and the folder that keeps the result for the next start."""
