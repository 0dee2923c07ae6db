"""`Gantry.admin`: each thing that can be done, for a caller that may block and for one on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from agent_gantry_state.admin import keys as _keys
from agent_gantry_state.admin import transfer
from agent_gantry_state.admin.asking import Asks, each, each_async, run, run_async
from agent_gantry_state.admin.erasing import Receipt, erase
from agent_gantry_state.admin.health import Health, examined
from agent_gantry_state.admin.listing import Places, Wanted, listed
from agent_gantry_state.admin.memories import StoredKey, StoredMemory
from agent_gantry_state.admin.transfer import Existing, OnCorrupt, Progress, Transferred
from agent_gantry_state.namespace import Namespace, text_of
from agent_gantry_state.resolvers import resolve
from agent_gantry_state.scopes import Identity, check_ttl
from agent_gantry_state.stores.protocol import KEEP, Listed, Ttl

if TYPE_CHECKING:
    from agent_gantry_state.wiring import Wiring

__all__ = ["Admin"]


class Admin:
    """What an operator does with the memories of a gantry's stores, whoever owns them.

    A memory is named by a `Namespace`, ``Namespace("session", "s1")``, to which the gantry adds its app; what `list` gives
    can be passed on as it is. Methods that begin with an ``a`` are for callers on an event loop.

    Attributes:
        app: Of whose memories it knows; None: of those of all apps.
    """

    def __init__(self, wiring: Wiring, app: str | None) -> None:
        self._wiring = wiring
        self.app = app

    @property
    def stores(self) -> tuple[Any, ...]:
        """The stores of the gantry."""
        return tuple([bridge.store for bridge in self._places().bridges])

    @property
    def all_apps(self) -> Admin:
        """The same for the memories of every app on these stores."""
        return Admin(self._wiring, None)

    # Looking.

    def list(self, scope: str | None = None, *, owner: str | None = None, user: str | None = None) -> Iterator[Listed]:
        """Which memories there are.

        Args:
            scope: Only those of this scope.
            owner: Only those that belong to this user, or with "" to nobody.
            user: Only those of this user: the one in scope ``user``, and all that belong to the user. Not with *owner*.

        Returns:
            Each with its `namespace` and `owner`, in no order that means anything, as they are found.

        Raises:
            NotListableError: The store cannot tell what is in it.
            StoreError: The store failed.
        """
        return each(listed(self._places(), self._wanted(scope, owner, user)))

    def alist(self, scope: str | None = None, *, owner: str | None = None, user: str | None = None) -> AsyncIterator[Listed]:
        """`list`, for a caller on an event loop."""
        return each_async(listed(self._places(), self._wanted(scope, owner, user)))

    def show(self, namespace: Namespace) -> StoredMemory:
        """A memory with all its keys, also those of compartments.

        Args:
            namespace: Which.

        Raises:
            MemoryNotFoundError: It is not there.
            CorruptEntryError: Something in it cannot be read.
            StoreError: The store failed.
        """
        return run(self._show(namespace))

    async def ashow(self, namespace: Namespace) -> StoredMemory:
        """`show`, for a caller on an event loop."""
        return await run_async(self._show(namespace))

    def get(self, namespace: Namespace, key: str) -> StoredKey:
        """One key of a memory: its value, its version, and what it has left.

        Args:
            namespace: Which memory.
            key: Which key.

        Raises:
            MemoryNotFoundError: It is not there.
            CorruptEntryError: It cannot be read.
            StoreError: The store failed.
        """
        return run(self._get(namespace, key))

    async def aget(self, namespace: Namespace, key: str) -> StoredKey:
        """`get`, for a caller on an event loop."""
        return await run_async(self._get(namespace, key))

    # Changing.

    def set(self, namespace: Namespace, key: str, value: Any, *, ttl: Ttl = KEEP, version: str | None = None) -> str:
        """Set one key of a memory, which is made if it is not there.

        Args:
            namespace: Which memory.
            key: Which key.
            value: Anything that can be stored.
            ttl: Seconds that it has from now on; None: it does not expire. By default it keeps the time that it has.
            version: Only if the key still has this version; `ABSENT`: only if it is not there. By default in any case.

        Returns:
            Its new version.

        Raises:
            MemoryConflictError: It has another version; nothing was written.
            MemoryTooLargeError: The memory would be larger than its scope may be.
            UnstorableValueError: The value, or the key, cannot be stored.
            StoreError: The store failed; `committed` says whether it is certain that nothing was written.
        """
        return run(self._set(namespace, key, value, ttl, version))

    async def aset(self, namespace: Namespace, key: str, value: Any, *, ttl: Ttl = KEEP, version: str | None = None) -> str:
        """`set`, for a caller on an event loop."""
        return await run_async(self._set(namespace, key, value, ttl, version))

    def delete(self, namespace: Namespace, key: str, *, version: str | None = None) -> None:
        """Delete one key of a memory.

        Args:
            namespace: Which memory.
            key: Which key.
            version: Only if the key still has this version. By default in any case.

        Raises:
            MemoryNotFoundError: It is not there.
            MemoryConflictError: It has another version; nothing was written.
            StoreError: The store failed; `committed` says whether it is certain that nothing was written.
        """
        run(self._delete(namespace, key, version))

    async def adelete(self, namespace: Namespace, key: str, *, version: str | None = None) -> None:
        """`delete`, for a caller on an event loop."""
        await run_async(self._delete(namespace, key, version))

    def forget(self, namespace: Namespace) -> None:
        """Erase a memory, also one that cannot be read. A call that had loaded it cannot bring anything of it back.

        Args:
            namespace: Which.

        Raises:
            MemoryNotFoundError: It is not there.
            StoreError: The store failed; `committed` says whether it is certain that nothing was erased.
        """
        run(self._forget(namespace))

    async def aforget(self, namespace: Namespace) -> None:
        """`forget`, for a caller on an event loop."""
        await run_async(self._forget(namespace))

    def erase(self, *, user: str, dry_run: bool = False) -> Receipt:
        """Erase every memory of a user: the one in scope ``user``, and all that belong to the user, such as sessions.

        What has no owner (a conversation, a tenant, unless their scopes are declared with ``owned=True``) says nothing of
        whose it is, and is not found: erase that with `forget`.

        Args:
            user: Id of the user.
            dry_run: Whether only to tell what would be erased.

        Returns:
            What was erased, and whether a last look found nothing any more.

        Raises:
            NotListableError: The store cannot tell what is in it; nothing was erased.
            StoreError: The store failed; some of it may be erased. Erase again.
        """
        return run(self._erase(user, dry_run))

    async def aerase(self, *, user: str, dry_run: bool = False) -> Receipt:
        """`erase`, for a caller on an event loop."""
        return await run_async(self._erase(user, dry_run))

    # Moving.

    def export(
        self,
        scope: str | None = None,
        *,
        owner: str | None = None,
        user: str | None = None,
        on_corrupt: OnCorrupt | None = None,
    ) -> Iterator[str]:
        """Memories as lines of JSON, without a newline: what `import_` reads. They are read as they are asked for.

        Args:
            scope: Only those of this scope.
            owner: Only those that belong to this user, or with "" to nobody.
            user: Only those of this user, as in `list`.
            on_corrupt: Called with the namespace and the error of one that cannot be read, which is then left out.

        Raises:
            CorruptEntryError: One cannot be read, and there is no *on_corrupt*.
            NotListableError: The store cannot tell what is in it.
            StoreError: The store failed.
        """
        return each(transfer.exported(self._places(), self._wanted(scope, owner, user), on_corrupt))

    def aexport(
        self,
        scope: str | None = None,
        *,
        owner: str | None = None,
        user: str | None = None,
        on_corrupt: OnCorrupt | None = None,
    ) -> AsyncIterator[str]:
        """`export`, for a caller on an event loop."""
        return each_async(transfer.exported(self._places(), self._wanted(scope, owner, user), on_corrupt))

    def import_(
        self,
        lines: Iterable[str | bytes],
        *,
        existing: Existing = "refuse",
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Transferred:
        """Write the memories of an export, each whole in one commit or not at all.

        What expires does so when it would have, and what slides begins its time anew. A memory that is there already and is
        the same is left alone, so that an import which failed is simply made again. No limit of a scope is asked about, for
        what was stored once may be stored again.

        Args:
            lines: The lines of an export.
            existing: What to do where another memory is there already: "refuse" it, "skip" the one of the export, or
                "replace" the one that is there.
            dry_run: Whether only to tell what would be done.
            progress: Called after each memory.

        Returns:
            How many memories were written, and what became of the others.

        Raises:
            ImportRefusedError: A line is not what an export has there; its message names line and key. The memories of
                the lines before are written.
            MemoryExistsError: Another memory is there already. Likewise.
            StoreError: The store failed; `committed` is about the memory of one line. Likewise.
            ValueError: *existing* is none of the three.
        """
        return run(self._import(lines, existing, dry_run, progress))

    async def aimport(
        self,
        lines: Iterable[str | bytes],
        *,
        existing: Existing = "refuse",
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Transferred:
        """`import_`, for a caller on an event loop."""
        return await run_async(self._import(lines, existing, dry_run, progress))

    def copy(
        self,
        target: Admin,
        scope: str | None = None,
        *,
        owner: str | None = None,
        existing: Existing = "refuse",
        progress: Progress | None = None,
        on_corrupt: OnCorrupt | None = None,
    ) -> Transferred:
        """Write memories into the stores of another gantry, one after the other, and look whether they are there.

        They keep their app, their owner, the order of their keys and what these have left; what slides begins its time anew.
        What is the same there already is left alone, so that a copy which failed is simply made again.

        Args:
            target: The other gantry's `admin`.
            scope: Only those of this scope.
            owner: Only those that belong to this user, or with "" to nobody.
            existing: As in `import_`.
            progress: Called after each memory. With it, they are counted before.
            on_corrupt: As in `export`.

        Returns:
            How many memories were written, and what became of the others.

        Raises:
            MemoryExistsError: Another memory is there already. Those before it are written.
            CorruptEntryError: One cannot be read, and there is no *on_corrupt*. Likewise.
            NotListableError: The store cannot tell what is in it.
            StoreError: A store failed, or what was written is not there. Likewise.
            ValueError: *existing* is none of the three.
        """
        return run(self._copy(target, scope, owner, existing, progress, on_corrupt))

    async def acopy(
        self,
        target: Admin,
        scope: str | None = None,
        *,
        owner: str | None = None,
        existing: Existing = "refuse",
        progress: Progress | None = None,
        on_corrupt: OnCorrupt | None = None,
    ) -> Transferred:
        """`copy`, for a caller on an event loop."""
        return await run_async(self._copy(target, scope, owner, existing, progress, on_corrupt))

    # Checking.

    def doctor(self, *, write: bool = True, scan: bool = True) -> tuple[Health, ...]:
        """Look whether the stores do what they should.

        Args:
            write: Whether to write a memory of every type of value, read it back and erase it.
            scan: Whether to read all memories, and count what cannot be read and what is expired.

        Returns:
            What was found of each store. A store that fails is no error here, but one of the `problems`.
        """
        return run(self._doctor(write, scan))

    async def adoctor(self, *, write: bool = True, scan: bool = True) -> tuple[Health, ...]:
        """`doctor`, for a caller on an event loop."""
        return await run_async(self._doctor(write, scan))

    # What both kinds of callers run.

    def _show(self, namespace: Namespace) -> Asks[StoredMemory]:
        namespace = self._named(namespace)
        return _keys.show(self._places().of(namespace), namespace)

    def _get(self, namespace: Namespace, key: str) -> Asks[StoredKey]:
        namespace = self._named(namespace)
        return _keys.get(self._places().of(namespace), namespace, text_of(key, "key"))

    def _set(self, namespace: Namespace, key: str, value: Any, ttl: Ttl, version: str | None) -> Asks[str]:
        namespace = self._named(namespace)
        if ttl is not KEEP:
            ttl = check_ttl("admin.set", ttl)  # type: ignore[arg-type]
        limits = self._wiring.scope(namespace.scope).limits
        return _keys.set_value(self._places().of(namespace), namespace, key, value, ttl, version, limits)

    def _delete(self, namespace: Namespace, key: str, version: str | None) -> Asks[None]:
        namespace = self._named(namespace)
        return _keys.delete(self._places().of(namespace), namespace, text_of(key, "key"), version)

    def _forget(self, namespace: Namespace) -> Asks[None]:
        namespace = self._named(namespace)
        return _keys.forget(self._places().of(namespace), namespace)

    def _erase(self, user: str, dry_run: bool) -> Asks[Receipt]:
        return erase(self._places(), self._wanted(None, None, user), dry_run)

    def _import(
        self, lines: Iterable[str | bytes], existing: Existing, dry_run: bool, progress: Progress | None
    ) -> Asks[Transferred]:
        return transfer.imported(self._places(), self.app, lines, _existing(existing), dry_run, progress)

    def _copy(
        self,
        target: Admin,
        scope: str | None,
        owner: str | None,
        existing: Existing,
        progress: Progress | None,
        on_corrupt: OnCorrupt | None,
    ) -> Asks[Transferred]:
        wanted = self._wanted(scope, owner, None)
        return transfer.copied(self._places(), wanted, target._places(), _existing(existing), progress, on_corrupt)

    def _doctor(self, write: bool, scan: bool) -> Asks[tuple[Health, ...]]:
        found = []
        for bridge in self._places().bridges:
            found.append((yield from examined(bridge, self.app, write, scan)))  # noqa: PERF401 - these are steps
        return tuple(found)

    def _places(self) -> Places:
        return Places(self._wiring.settings.bridge)

    def _named(self, namespace: Namespace) -> Namespace:
        if not isinstance(namespace, Namespace):
            raise TypeError(f"admin: a memory is named by a Namespace(scope=, id=), not a {type(namespace).__name__}")
        if self.app is None or namespace.app == self.app:
            return namespace
        if namespace.app:
            raise ValueError("admin: this namespace is of another app than the gantry's; use admin.all_apps")
        return Namespace(namespace.scope, namespace.id, self.app)

    def _wanted(self, scope: str | None, owner: str | None, user: str | None) -> Wanted:
        known: tuple[Namespace, ...] = ()
        if user is not None:
            if owner is not None:
                raise ValueError("admin: owner and user exclude each other: what a user owns is among what is the user's")
            identity = Identity(user=user)
            if self.app is not None:
                settings, own = self._wiring.settings, Namespace("user", text_of(user, "user"), self.app)
                # Where resolvers of the gantry's own put the memory of this user.
                resolved = resolve("user", None, identity, self.app, settings.resolvers, self._wiring.scopes)
                known = (own, resolved) if resolved != own else (own,)
        return Wanted(self.app, scope, owner, user, known)


def _existing(existing: Existing) -> Existing:
    if existing not in ("refuse", "skip", "replace"):
        raise ValueError(f'existing must be "refuse", "skip" or "replace", not {existing!r}')
    return existing
