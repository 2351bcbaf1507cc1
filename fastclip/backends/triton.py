"""tmp"""
from fastclip.backends.reference import ReferenceBackend
class TritonBackend(ReferenceBackend):
    name="triton"
    def unavailable_reason(self): return "being written"
