"""A private folder that stands in for Kubernetes Secrets: ``<folder>/<namespace>/<secret>/<key>``.

A file's bytes are the value, exactly as ``kubectl create secret --from-file`` would take them: a trailing
newline is part of it. Values are read when a pod starts and reach its environment only.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ml_lifecycle.errors import LifecycleError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEY = re.compile(r"(?!\.\.)[-._A-Za-z0-9]{1,253}")


class NotPrivateError(LifecycleError):
    """A file or folder of secrets can be read by other users. Retry: no, change its mode."""


class SecretMissingError(LifecycleError):
    """A pod asks for a secret or a key that is not in the folder. Retry: no, unless it is put there."""


def require_private(path: Path) -> None:
    """Make sure that only its owner can reach ``path``.

    :raises NotPrivateError: group or others have any right to it, or it is another user's. Retry: no.
    """
    found = path.stat()
    wanted = "0700" if stat.S_ISDIR(found.st_mode) else "0600"
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
        raise NotPrivateError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o} and owner {found.st_uid}; "
            f"it must belong to you with mode {wanted}: chmod {wanted} {path}"
        )


class SecretFolder:
    """Reads secrets; ``folder`` None means that there are none.

    :raises NotPrivateError: other users can reach the folder. Retry: no.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            require_private(folder)
        self._folder = folder

    def value(self, namespace: str, secret: str, key: str) -> str:
        """One value.

        :raises SecretMissingError: no such secret or key, or it is no text. Retry: no.
        """
        values = self._read(namespace, secret, only=key)
        if key not in values:
            raise SecretMissingError(f'key "{key}" not found in secret "{namespace}/{secret}"')
        return values[key]

    def values(self, namespace: str, secret: str) -> dict[str, str]:
        """All values of a secret.

        :raises SecretMissingError: no such secret, or a value is no text. Retry: no.
        """
        return self._read(namespace, secret)

    def _read(self, namespace: str, secret: str, only: str | None = None) -> dict[str, str]:
        folder = None if self._folder is None else self._folder / namespace / secret
        if folder is None or not _NAME.fullmatch(secret) or not _NAME.fullmatch(namespace):
            raise SecretMissingError(f'secret "{namespace}/{secret}" not found')
        if not folder.is_dir():
            raise SecretMissingError(f'secret "{namespace}/{secret}" not found: no folder {folder}')
        return {
            path.name: _text(path)
            for path in sorted(folder.iterdir())
            if _KEY.fullmatch(path.name) and path.name in (only or path.name,) and path.is_file()
        }


def _text(path: Path) -> str:
    try:
        value = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SecretMissingError(
            f"{path} is not UTF-8 text, which an environment variable must be"
        ) from error
    if "\0" in value:
        raise SecretMissingError(f"{path} contains a NUL byte, which an environment variable may not have")
    return value
