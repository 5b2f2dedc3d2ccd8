"""Writes the wrappers of libfabrictrack: ``python3 generate.py mpi.list >wrappers.inc``.

Standard library only: the Makefile runs it with whatever Python there is.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

# Those whose wrapper does more than stamp.
SPECIAL = ("Init", "Init_thread", "Comm_free", "Comm_disconnect", "Type_free", "Abort", "Finalize")


def functions(text: str) -> list[tuple[str, str, str]]:
    """``(name, flags, roles)`` of each line."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [(words[0], words[1], words[2] if len(words) > 2 else "") for words in lines]


def wrapper(number: int, name: str, flags: str, roles: str, language: str) -> Iterator[str]:
    """One function. ``language``: ``c``; ``large``, with 64-bit counts; ``f``, or ``f08``."""
    fortran = language in ("f", "f08")
    suffix = {"c": "", "large": "_c", "f": "_", "f08": "_f08_"}[language]
    public = f"mpi_{name.lower()}{suffix}" if fortran else f"MPI_{name}{suffix}"
    real = f"p{public}" if fortran else f"P{public}"
    found = f"real_{public}"
    if fortran:
        roles = {"Init": "", "Init_thread": "--"}.get(name, roles) + "e"
    arguments = ", ".join(f"word a{i}" for i in range(len(roles))) or "void"
    passed = ", ".join(f"a{i}" for i in range(len(roles)))

    def value(role: str, code: str, missing: str) -> str:
        at = roles.find(role)
        return missing if at < 0 else code.format(f"a{at}")

    comm = value("m", "COMM_F({0})" if fortran else "(uint64_t){0}", "")
    peer = value("p", "*(int *){0}" if fortran else "(int32_t){0}", "-1")
    count = value(
        "c", "*(int *){0}" if fortran else ("{0}" if language == "large" else "(int){0}"), ""
    )
    kind = value("t", "TYPE_F({0})" if fortran else "(uint64_t){0}", "")
    size = f"(uint64_t)({count}) * size_of({kind})" if count and kind else "0"
    slot = f"comm_of({comm})" if comm else "0"

    hot = language == "c" and name not in SPECIAL and "n" not in flags
    yield f"static any_function {found};"
    if hot:
        yield f"static SLOW word slow_{public}({arguments})"
    else:
        yield f"EXPORT word {public}({arguments});"
        yield f"EXPORT word {public}({arguments})"
    yield "{"
    yield "\tword result;"
    yield ""
    if language == "large":
        # mpi4py looks whether the function is there at all, and with the tracker it always is:
        # where MPI lacks it, its plain sister takes the same registers, up to what an int holds.
        yield "\tstatic int plain;"
        yield ""
        yield f'\tif (UNLIKELY(!{found}))\n\t\tplain = resolve_large("{real}", &{found});'
        counts = " | ".join(f"a{at}" for at, role in enumerate(roles) if role in "cd")
        yield f"\tif (UNLIKELY(plain && (uint64_t)({counts}) > INT_MAX))\n\t\treturn ERR_COUNT;"
    else:
        yield f'\tif (UNLIKELY(!{found}))\n\t\tresolve("{real}", "{public}", &{found});'
    if name in ("Init", "Init_thread"):
        yield f"\tresult = {found}({passed});\n\tafter_init();\n\treturn result;\n}}"
        return
    yield "\tif (UNLIKELY(depth)) {"
    yield "\t\tblock->now.other_threads += !owner;"
    yield f"\t\treturn {found}({passed});"
    yield "\t}"
    yield "\tdepth = 1;"
    if name in ("Comm_free", "Comm_disconnect"):
        yield f"\tforget_comm({'COMM_F(a0)' if fortran else 'handle_at(a0)'});"
    if name == "Type_free":
        yield "\tflush_types();"
    if name == "Abort":
        yield "\tbefore_end(TRACK_ABORTED);"
    collective = "1" if "C" in flags or "n" in flags else "0"
    yield f"\tstamp_enter({number}, {slot}, {peer}, {size}, {collective});"
    yield f"\tresult = {found}({passed});"
    yield f"\tstamp_exit({number}, {int('q' in flags)});"
    if "n" in flags:
        at = roles.find("n")
        made = f"COMM_F(a{at})" if fortran else f"handle_at(a{at})"
        yield f"\tmade_comm(block->now.what.comm, {made});"
    if name == "Finalize":
        yield "\tbefore_end(TRACK_FINALIZED);"
    yield "\tdepth = 0;"
    yield "\treturn result;"
    yield "}"
    if not hot:
        return
    # Nothing has to be asked, as nearly always: no call but MPI's own, so nothing to be saved.
    yield ""
    yield f"EXPORT word {public}({arguments});"
    yield f"EXPORT word {public}({arguments})"
    yield "{"
    yield "\tuint64_t ticks = ticks_now();"
    yield "\tword result;"
    yield ""
    asked = [f"!{found}", "depth", "is_stale(ticks)"]
    asked += [f"!is_last_comm({comm})"] if comm else []
    asked += [f"!is_known_type({kind})"] if count and kind else []
    yield f"\tif (UNLIKELY({' || '.join(asked)}))"
    yield f"\t\treturn slow_{public}({passed});"
    yield "\tdepth = 1;"
    last = "last_slot" if comm else "0"
    yield f"\tstamp_enter_at(ticks, {number}, {last}, {peer}, {size}, {collective});"
    yield f"\tresult = {found}({passed});"
    yield f"\tstamp_exit_at(ticks_now(), {number}, {int('q' in flags)});"
    yield "\tdepth = 0;"
    yield "\treturn result;"
    yield "}"


def has_large(name: str, roles: str) -> bool:
    """Whether a form with 64-bit counts is wrapped: not those with arrays of them."""
    return "c" in roles and name[-1] not in "vw"


def main() -> None:
    """The wrappers of every function in every language, to standard output."""
    found = functions(Path(sys.argv[1]).read_text())
    out = ["/* Written by generate.py from mpi.list. */"]
    for number, (name, flags, roles) in enumerate(found):
        languages = ["c", "f", "f08"] + (["large"] if has_large(name, roles) else [])
        for language in languages:
            out += ["", *wrapper(number, name, flags, roles, language)]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
