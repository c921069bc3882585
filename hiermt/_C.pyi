from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch: str
    abi_target: str
    compiler: str
    cpu_isas: tuple[str, ...]
    cpu_isa: str
    cpu_isa_error: str
    cuda: str | None
    cuda_architectures: tuple[str, ...]

def build_info() -> BuildInfo: ...
def release_scratch() -> int: ...
