"""The backbone on a device: torch or OpenVINO on a CPU, recorded graphs on CUDA."""
