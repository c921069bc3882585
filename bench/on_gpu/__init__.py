"""The parts of ``bench/gpu.py``: processes with limits, the record, the stages, and what runs on the GPU."""
