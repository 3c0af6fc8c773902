"""What is wrong with a file, in words that quote none of it: whoever names the wrong file may have named one with a secret."""

from __future__ import annotations

import re
import tomllib

from pydantic import ValidationError

_MOST_FIELDS = 8
_NAME_CHARACTERS = 64


def fault_of(exc: OSError | ValueError) -> str:
    """Why a file was not read or taken: the names of the fields that are wrong, never what stands in them.

    A model's own validators must not quote their input, either.
    """
    match exc:
        case ValidationError():
            return _wrong_fields(exc)
        case UnicodeDecodeError():
            return "not UTF-8 text"
        case tomllib.TOMLDecodeError():
            return f"not TOML{_position(exc)}"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return str(exc)


def _position(exc: tomllib.TOMLDecodeError) -> str:
    found = re.search(r" \(at [^()]*\)$", str(exc))
    return found[0] if found else ""


def _wrong_fields(exc: ValidationError) -> str:
    errors = exc.errors(include_input=False, include_url=False, include_context=False)
    told = [": ".join(filter(None, (_name(error["loc"]), error["msg"]))) for error in errors[:_MOST_FIELDS]]
    more = len(errors) - len(told)
    return "; ".join([*told, f"and {more} more"] if more else told)


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:_NAME_CHARACTERS] for part in place)
