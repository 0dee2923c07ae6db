"""What is in the files of a file store: reading them, each or several at one moment, and keeping what was read.

What is kept is given again while its file is still the same one, so that a memory that nobody changed is not read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.file_directory import ABSENT, Directory, Signature
from agent_gantry_state.stores.file_journal import is_pending
from agent_gantry_state.stores.file_shared import SharedDirectory
from agent_gantry_state.stores.kept import KEY_BYTES, Kept
from agent_gantry_state.stores.protocol import EMPTY
from agent_gantry_state.stores.whole import Image, is_newer, read_image

__all__ = ["Found", "Images", "UnreadableError", "name_of"]

#: How often several files are read in the hope that none changes meanwhile.
_TRIES = 3

#: An image, and what tells the file from which it was read.
Found = tuple[Signature, Image]


class UnreadableError(Exception):
    """A file holds no namespace that can be read."""

    def __init__(self, namespace: Namespace, error: CorruptEntryError, newer: bool) -> None:
        super().__init__()
        self.namespace = namespace
        self.error = error
        self.newer = newer


class Images:
    """Reads the namespaces of a directory."""

    def __init__(self, files: SharedDirectory) -> None:
        self._files = files
        #: By name of the file.
        self._kept: Kept[str, Found] = Kept()

    def clear(self) -> None:
        self._kept.clear()

    def drop(self, name: str) -> None:
        self._kept.drop(name)

    def at_one_moment(
        self, directory: Directory, namespaces: Sequence[Namespace], deadline: float | None
    ) -> Sequence[Found]:
        """Namespaces as they all stood at one moment.

        Raises:
            WouldBlock: It would have to wait for a commit of several and may not.
        """
        for _ in range(_TRIES):
            if is_pending(directory):
                # Part of a commit may be visible: its writer is waited for, or it is finished in its place.
                break
            found = [self.found(directory, namespace) for namespace in namespaces]
            # Between the last reading and this look at the journal everything stood as it was read. A commit of several
            # that was only halfway then has its journal still there, or its last rename is seen in the signatures.
            if len(found) < 2 or (not is_pending(directory) and self.stand(directory, namespaces, found)):
                return found
        self._files.acquire(directory, deadline)
        try:
            return [self.found(directory, namespace) for namespace in namespaces]
        finally:
            self._files.release(directory)

    def stand(self, directory: Directory, namespaces: Sequence[Namespace], found: Sequence[Found]) -> bool:
        """Whether the files are still those that were read."""
        for namespace, (signature, _) in zip(namespaces, found, strict=True):
            if signature is None or directory.signature(name_of(namespace)) != signature:
                return False
        return True

    def found(self, directory: Directory, namespace: Namespace) -> Found:
        """The namespace as it stands, also what is expired in it."""
        name = name_of(namespace)
        kept = self._kept.get(name)
        if kept is not None and directory.signature(name) == kept[0]:
            return kept
        read = directory.read(name)
        if read is None:
            self.drop(name)
            return ABSENT, Image(namespace, EMPTY, {})
        data, signature = read
        try:
            image = read_image(data, namespace)
        except CorruptEntryError as error:
            raise UnreadableError(namespace, error, is_newer(data)) from None
        self.keep(name, signature, image, len(data))
        return signature, image

    def keep(self, name: str, signature: Signature, image: Image, size: int) -> None:
        if signature is None:
            self.drop(name)
        else:
            self._kept.keep(name, (signature, image), size + KEY_BYTES * len(image.snapshot.values))

    def glance(self, directory: Directory, name: str) -> Image | None:
        """What is in a file, whoever's it is; None if that cannot be read, which the next load of it reports."""
        kept = self._kept.get(name)
        if kept is not None and directory.signature(name) == kept[0]:
            return kept[1]
        try:
            read = directory.read(name)
            image = None if read is None else read_image(read[0])
        except (OSError, CorruptEntryError):
            return None
        return image if image is not None and name_of(image.namespace) == name else None


@lru_cache(maxsize=4096)
def name_of(namespace: Namespace) -> str:
    """The name of a namespace's file."""
    return namespace.digest.hex()
