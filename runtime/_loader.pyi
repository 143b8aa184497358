import os

from sparsec.runtime.artifact import Artifact

class Library:
    name: str
    @property
    def handle(self) -> int: ...

def load(artifact: Artifact, length: int) -> Library: ...
def share(folder: str | os.PathLike[str]) -> None: ...
