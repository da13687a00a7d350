"""Find files that shadow modules of Python's standard library."""

import os
import sys


def check_shadowed_modules() -> None:
    """Exit with an error if a file beside run.py shadows a standard module.

    Python searches that folder first, so a user's file called random.py breaks libraries that
    import `random`. Modules that Python loads at its start cannot be shadowed.
    """
    folder = sys.path[0] if sys.path else ""
    if not os.path.isfile(os.path.join(folder, "run.py")):
        return  # not started by run.py, or with -P, which excludes the folder from the search
    modules = set(sys.stdlib_module_names) - sys.modules.keys() - set(sys.builtin_module_names)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        print(
            f"{folder}: cannot be listed ({error.strerror}); a file in it may shadow a standard "
            "module.",
            file=sys.stderr,
        )
        return
    for name in names:
        package = os.path.isfile(os.path.join(folder, name, "__init__.py"))
        module, suffix = os.path.splitext(name)
        if module in modules and (suffix in (".py", ".pyc", ".so") or (package and not suffix)):
            print(
                f"{os.path.join(folder, name)}: shadows Python's standard module {module!r}; "
                "rename it.",
                file=sys.stderr,
            )
            sys.exit(2)
