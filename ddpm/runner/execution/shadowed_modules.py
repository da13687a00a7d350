"""Files that hide Python's own modules, found before they do harm."""

import os
import sys


def check_shadowed_modules() -> None:
    """Name a file beside run.py that Python would import in place of a module of its own.

    Python looks there first, so that a file of data called random.py breaks a library far away.
    Modules that are loaded when Python starts cannot be hidden any more.
    """
    folder = sys.path[0] if sys.path else ""
    if not os.path.isfile(os.path.join(folder, "run.py")):
        return  # started in another way, or with -P, by which Python does not look there
    modules = set(sys.stdlib_module_names) - sys.modules.keys() - set(sys.builtin_module_names)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        print(
            f"{folder}: cannot be listed ({error.strerror}), so that nobody knows whether a file "
            "in it hides a module of Python.",
            file=sys.stderr,
        )
        return
    for name in names:
        package = os.path.isfile(os.path.join(folder, name, "__init__.py"))
        module, suffix = os.path.splitext(name)
        if module in modules and (suffix in (".py", ".pyc", ".so") or (package and not suffix)):
            print(
                f"{os.path.join(folder, name)}: hides Python's own module {module!r}, which "
                "libraries need; give it another name.",
                file=sys.stderr,
            )
            sys.exit(2)
