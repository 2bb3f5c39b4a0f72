"""`qtutor learn` and `qtutor progress`: the chapters, and which exercises are done."""


def add_to(command) -> None:
    """Add ``learn`` and ``progress`` to the commands; ``command`` creates their parsers."""
    sub = command(
        learn,
        "learn",
        "Copy the chapters into a folder of yours and open JupyterLab on the first.",
        ["learn", "learn ~/quantization --no-browser", "learn --no-start    # only copy, or bring up to date"],
    )
    sub.add_argument("folder", nargs="?", default="qtutor-course", help="your workspace (default: %(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    sub.add_argument("--no-start", action="store_true", help="do not start JupyterLab")

    examples = ["progress", "progress ~/quantization"]
    sub = command(progress, "progress", "Show the exercises, and which of them you have done.", examples)
    sub.add_argument("folder", nargs="?", help="your workspace (default: the one you are in, or qtutor-course)")


def learn(options) -> int:
    """``qtutor learn``: a workspace with the chapters, and JupyterLab in it."""
    from qtutor.course import workspace

    report = workspace.make(options.folder)
    print(report)
    if options.no_start:
        return 0
    return workspace.start(report.folder, browser=not options.no_browser)


def progress(options) -> int:
    """``qtutor progress``: which exercises of each chapter are done."""
    from qtutor.course import progress_table, workspace

    here = workspace.find()
    print(progress_table(options.folder or here or workspace.DEFAULT_FOLDER))
    return 0
